"""The tokenizer of the model of a server that speaks OpenAI's protocol, in this process."""

from __future__ import annotations

from langchain_specdec.backends.openai.server_facts import ServerInfo
from langchain_specdec.backends.remote.facts import ModelInfo
from langchain_specdec.backends.remote.prompt_tokenizer import LocalTokenizer, TokenizerInUse


class ServedTokenizer(TokenizerInUse):
    """The same where a server may serve its model by another name than that of its tokenizer."""

    def certain(self, info: ModelInfo | None) -> LocalTokenizer | None:
        """The same, and None where it is not known what answers: a prompt depends on what that can do."""
        return None if info is None else super().certain(info)

    def load(self, info: ModelInfo) -> LocalTokenizer | None:
        """The same, and None where the server writes the prompts of chats: what its model is called says little."""
        if self._given is None and isinstance(info, ServerInfo) and info.dialect.writes_prompts:
            return None
        return super().load(info)

    def _load(self, info: ModelInfo) -> LocalTokenizer:
        source = info.source if isinstance(info, ServerInfo) else info.model_id
        return LocalTokenizer.of_server(source, None, self._url)
