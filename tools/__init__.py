"""Tools of the project: the plan of the house, what the documentation is made with, and the check on a GPU."""
