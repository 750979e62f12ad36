"""Chats: messages to prompts, and answers back to messages."""
