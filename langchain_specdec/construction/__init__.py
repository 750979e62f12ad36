"""How the LangChain models are made: their keywords, and what is checked before a model is loaded."""
