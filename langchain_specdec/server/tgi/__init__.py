"""TGI's own interface: what its router takes, checks and answers, in its words."""
