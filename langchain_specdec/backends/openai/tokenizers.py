"""The tokenizer of the model of a server that speaks OpenAI's protocol, in this process."""

from __future__ import annotations

from pathlib import Path

from langchain_specdec.backends.openai.server_facts import ServerInfo
from langchain_specdec.backends.remote.facts import ModelInfo
from langchain_specdec.backends.remote.failures import is_loopback
from langchain_specdec.backends.remote.prompt_tokenizer import LocalTokenizer, TokenizerInUse
from langchain_specdec.errors import ModelLoadError, SpecDecError
from langchain_specdec.models.gguf.file import open_gguf
from langchain_specdec.models.gguf.tokenizer import read_tokenizer
from langchain_specdec.models.private_tokenizer import PrivateTokenizer


class ServedTokenizer(TokenizerInUse):
    """The same where a server names its model by another name than its tokenizer's, or by a GGUF file."""

    def _load(self, info: ModelInfo) -> LocalTokenizer:
        source = info.source if isinstance(info, ServerInfo) else info.model_id
        if not source.endswith(".gguf"):
            return LocalTokenizer.of_server(source, None, self._url)
        why = "that file is not on this machine."
        if is_loopback(self._url) and Path(source).is_file():
            try:
                tokenizer = read_tokenizer(open_gguf(Path(source)), info.max_total_tokens or 2**20)
            except SpecDecError as error:
                why = str(error)
            else:
                return LocalTokenizer(PrivateTokenizer(tokenizer, is_ours=True))
        msg = (
            f"The tokenizer of {source!r}, the model of the server at {self._url}, cannot be read: {why} Give the "
            f"tokenizer of that model, its id, or a folder with it: tokenizer=."
        )
        raise ModelLoadError(msg)
