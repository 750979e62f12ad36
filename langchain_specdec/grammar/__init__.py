"""The form of an answer, and which tokens may follow."""
