"""Serves a model to other programs, by TGI's HTTP interface and OpenAI's: `specdec serve`."""
