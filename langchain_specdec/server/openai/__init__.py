"""OpenAI's interface: chats, completions and the list of models, with the acceptance of each request."""
