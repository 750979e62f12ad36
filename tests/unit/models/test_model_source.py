"""Names of models: what they stand for, what is said of those that stand for none, and what the Hub answers."""

from __future__ import annotations

import errno
import json
import logging
import os
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from huggingface_hub import constants

from langchain_specdec.errors import InvalidParameterError, ModelLoadError
from langchain_specdec.models import hub
from langchain_specdec.models.gguf.source import local_gguf
from langchain_specdec.models.hub import unreachable, within
from langchain_specdec.models.model_source import check_source, means_gguf

ID = "somebody/something"


@pytest.fixture(autouse=True)
def empty_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.delenv("TRANSFORMERS_CACHE", raising=False)
    monkeypatch.delenv("HF_HUB_ETAG_TIMEOUT", raising=False)
    return tmp_path / "cache"


def download(cache: Path, revision: str = "main", file: str = "config.json") -> None:
    repository = cache / f"models--{ID.replace('/', '--')}"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / file).write_text("{}")
    (repository / "refs").mkdir()
    (repository / "refs" / revision).write_text("abc")


def refusal(source: Any, **options: Any) -> str:
    with pytest.raises(ModelLoadError) as caught:
        check_source(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith((".", "?"))
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)
    return message


# Names of other things.


@pytest.mark.parametrize(
    ("name", "advice"),
    [
        ("x.gguf", "There is no file 'x.gguf'. Give the path of a GGUF file"),
        ("/no/such/x.GGUF", "There is no file '/no/such/x.GGUF'. Give the path of a GGUF file"),
        ("owner/x.gguf", "If a file is meant: there is none of that name. Give the path of a GGUF file"),
        ("./x.onnx", "ONNX files are not read here"),
        ("model.safetensors", "There is no file 'model.safetensors'. Give the folder that holds"),
        ("model.zip", "Unpack the archive"),
        ("/no/such/folder", "There is no folder '/no/such/folder'"),
        ("C:\\models\\x", "There is no folder 'C:\\\\models\\\\x'"),
        ("a/b/c", "There is no folder 'a/b/c'"),
        ("", "There is no folder ''"),
        ("llama3:8b", "is a name of Ollama's"),
        ("library/llama3:8b", "is a name of Ollama's"),
        ("hf.co/a/b:Q4_K_M", "is a name of Ollama's"),
        ("https://huggingface.co/a/b", "is an address. Give the model's id, 'a/b'."),
        ("huggingface.co/a/b/", "Give the model's id, 'a/b'."),
        ("https://huggingface.co/gpt2/tree/main", "Give the model's id, 'gpt2'."),
        ("https://huggingface.co/a/b/tree/v1?x=y", "Give the model's id, 'a/b', and 'v1' as the revision."),
        ("https://huggingface.co/a/b/blob/main/q/x.gguf", "Give the file as 'a/b:q/x.gguf'."),
        ("https://huggingface.co/a/b/resolve/v1/x.gguf?x=y", "the file as 'a/b:x.gguf', and 'v1' as the revision."),
        ("https://mirror.example/a/b", "Give a folder, or a model's id"),
        ("https://huggingface.co/datasets/a/b", "Give a folder, or a model's id"),
        ("file:///models/x", "Give the path, '/models/x'."),
        ("a/b@v1", "Give 'a/b' as the model, and 'v1' as the revision."),
        ("embeded", "Did you mean 'embedded'"),
        ("two words", "'two words' is neither a folder nor a model id. An id has the form owner/name"),
        ("-x", "is neither a folder nor a model id"),
    ],
)
def test_what_is_no_model_is_told_with_what_to_give(name: str, advice: str) -> None:
    assert advice in refusal(name)


def test_an_address_of_the_hub_that_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "https://hub.example")
    assert "Give the model's id, 'a/b'." in refusal("https://hub.example/a/b")


@pytest.mark.parametrize("host", ["huggingface.co", "hub.example"])
def test_keys_in_an_address_are_not_repeated(host: str) -> None:
    assert "hf_secret" not in refusal(f"https://me:hf_secret@{host}/a/b?token=hf_secret")


@pytest.mark.parametrize(
    ("file", "advice"),
    [
        ("x.ggml", "This form of file came before GGUF"),
        ("x.onnx", "ONNX files are not read here"),
        ("x.zip", "Unpack the archive"),
        ("model.safetensors", "Give the folder that holds a model's config.json"),
        ("pytorch_model.bin", "Give the folder that holds a model's config.json"),
        ("notes", "Give the folder that holds a model's config.json"),
    ],
)
def test_a_file_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, advice: str) -> None:
    (tmp_path / file).touch()
    monkeypatch.chdir(tmp_path)
    for name in (file, f"./{file}", tmp_path / file):
        message = refusal(name)
        assert f"{str(name)!r} is a file. {advice}" in message
        assert str(tmp_path) + "')" not in message
    if "folder that holds" in advice:
        (tmp_path / "config.json").write_text("{}")
        assert f"({str(tmp_path)!r})" in refusal(tmp_path / file)


@pytest.mark.parametrize("look", [check_source, means_gguf])
@pytest.mark.parametrize("method", ["exists", "iterdir"])  # Which of them fails differs by Python's version.
def test_what_may_not_be_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, look: Callable[[Path], Any]
) -> None:
    def refuse(path: Path) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", str(path / "config.json"))

    monkeypatch.setattr(Path, method, refuse)
    with pytest.raises(ModelLoadError, match=f"^Cannot read '{tmp_path}': Permission denied.$"):
        look(tmp_path)
    assert hub.is_here(str(tmp_path))


def test_a_name_longer_than_the_system_allows_is_refused() -> None:
    with pytest.raises(ModelLoadError):
        check_source("x" * 5000)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no such files here")
def test_what_is_neither_a_file_nor_a_folder(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.gguf")
    assert "x.gguf' is neither a file nor a folder. Give the folder" in refusal(tmp_path / "x.gguf")


@pytest.mark.parametrize(
    ("file", "advice"),
    [
        ("model.onnx", "ONNX files are not read here"),
        ("snapshots/abc/config.json", "There is one in '{folder}/snapshots/abc': give that folder."),
        ("checkpoint-7/config.json", "There is one in '{folder}/checkpoint-7': give that folder."),
        ("model.safetensors", "as save_pretrained writes them."),
    ],
)
def test_a_folder_without_a_model(tmp_path: Path, file: str, advice: str) -> None:
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text("{}")
    message = refusal(tmp_path)
    assert f"{str(tmp_path)!r} has no config.json, so it holds no model. " in message
    assert advice.format(folder=tmp_path) in message


@pytest.mark.parametrize("file", ["config.json", "adapter_config.json"])
def test_models_and_adapters_are_let_through(tmp_path: Path, empty_cache: Path, file: str) -> None:
    (tmp_path / file).write_text("{}")
    assert check_source(tmp_path) == (str(tmp_path), None)
    download(empty_cache, file=file)
    assert check_source(ID) == (ID, None)
    assert check_source("embedded") == ("embedded", None)


def test_a_gguf_file_is_let_through_as_it_is_and_out_of_its_folder(tmp_path: Path) -> None:
    file = tmp_path / "x-Q4.gguf"
    file.touch()
    for name in ("mmproj-x.gguf", "README.md"):
        (tmp_path / name).touch()
    assert check_source(str(file)) == check_source(file) == check_source(tmp_path) == (str(file), None)
    (tmp_path / "config.json").write_text("{}")
    assert check_source(tmp_path) == (str(tmp_path), None)


def test_a_model_in_parts_is_one(tmp_path: Path) -> None:
    for part in (1, 2, 3):
        (tmp_path / f"x-0000{part}-of-00003.gguf").touch()
    assert check_source(tmp_path) == (str(tmp_path / "x-00001-of-00003.gguf"), None)


def test_a_folder_with_several_gguf_models_is_told_how_to_name_one(tmp_path: Path) -> None:
    for name in ("b.gguf", "a.GGUF"):
        (tmp_path / name).touch()
    message = refusal(tmp_path)
    assert message == f"{str(tmp_path)!r} holds 2 GGUF models. Give one, such as {str(tmp_path / 'a.GGUF')!r}: " + (
        "a.GGUF, b.gguf."
    )


def test_no_adapter_is_a_gguf_file(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").touch()
    for given in (tmp_path, tmp_path / "x.gguf"):
        assert "Give the folder that holds an adapter" in refusal(given, holds="an adapter's weights")
    assert "Give the folder that holds an adapter" in refusal("y.gguf", holds="an adapter's weights")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("owner/name:x.gguf", ("owner/name", "x.gguf")),
        ("name:Q4/x-Q4_K_M.GGUF", ("name", "Q4/x-Q4_K_M.GGUF")),
        ("owner/name:Q4_K_M", None),
        ("C:x.gguf", None),
        ("C:\\x.gguf", None),
        ("owner/name:../x.gguf", None),
        ("owner/name:/x.gguf", None),
        ("x.gguf", None),
    ],
)
def test_names_of_files_on_the_hub(name: str, expected: object) -> None:
    assert hub.hub_file(name) == expected


# The Hub.


def test_a_downloaded_gguf_file_is_let_through(empty_cache: Path) -> None:
    message = refusal(f"{ID}:x.gguf")
    assert message.startswith(f"Cannot load {ID}:x.gguf: it is not on this machine")
    assert f"hf download {ID} x.gguf" in message
    assert not hub.is_here(f"{ID}:x.gguf")
    download(empty_cache, file="x.gguf")
    assert hub.is_here(f"{ID}:x.gguf")
    assert check_source(f"{ID}:x.gguf") == (f"{ID}:x.gguf", None)
    found = local_gguf(f"{ID}:x.gguf")
    assert found == empty_cache / f"models--{ID.replace('/', '--')}" / "snapshots" / "abc" / "x.gguf"


def test_offline_an_id_is_refused_without_a_question() -> None:
    message = refusal(ID)
    assert message.startswith(f"Cannot load {ID}: it is not on this machine, and HF_HUB_OFFLINE is set")
    assert f"hf download {ID}" in message
    assert "(revision 'v1')" in refusal(ID, revision="v1")


def test_a_revision_that_was_not_downloaded_is_not_here(empty_cache: Path) -> None:
    download(empty_cache)
    assert check_source(ID) == (ID, None)
    assert "(revision 'v2')" in refusal(ID, revision="v2")


def test_the_cache_of_transformers_4_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    download(tmp_path / "other")
    monkeypatch.setenv("TRANSFORMERS_CACHE", str(tmp_path / "other"))
    assert check_source(ID) == (ID, None)


class _Hub(BaseHTTPRequestHandler):
    """Answers as the Hub does: with the status and the error code that the name of a repository asks for."""

    files: tuple[str, ...] = ()
    questions: ClassVar[list[str]] = []

    def _answer(self, status: int, code: str = "", body: bytes = b"") -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", '"1"')
        self.send_header("X-Repo-Commit", "abc")
        self.end_headers()
        self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.questions.append(self.path)
        status, _, code = self.path.split("/")[2].partition("-")
        self._answer(int(status), code)

    def do_GET(self) -> None:
        if not self.path.startswith("/api/models/"):
            self._answer(404)  # what the library asks for itself
            return
        self.questions.append(self.path)
        siblings = [{"rfilename": file} for file in self.files]
        self._answer(200, body=json.dumps({"id": "o/x", "siblings": siblings, "tags": [], "private": False}).encode())

    def log_message(self, *_: Any) -> None:
        pass


def point_to(monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(hub, "_known", {})
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[_Hub]]:
    handler: type[_Hub] = type("Handler", (_Hub,), {"questions": []})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    point_to(monkeypatch, f"http://127.0.0.1:{server.server_port}")
    yield handler
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.server
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("o/401-RepoNotFound", "there is no such model on http://127.0.0.1:{port}, or it is private."),
        ("o/404-RepoNotFound", "Is the id spelt right?"),
        ("o/401-GatedRepo", "Accept its conditions on http://127.0.0.1:{port}/o/401-GatedRepo, then run hf auth login"),
        ("o/403-GatedRepo", "access to it has to be granted"),
        ("o/404-RevisionNotFound", "there is no revision 'v1' of it"),
        ("o/500", "answers with status 500. Is HF_ENDPOINT the address of a Hub?"),
        ("o/429", "answers with status 429."),
    ],
)
def test_what_the_hub_refuses(answers: type[_Hub], name: str, said: str) -> None:
    message = refusal(name, revision="v1", token="hf_secret")
    port = constants.ENDPOINT.rpartition(":")[2]
    assert message.startswith(f"Cannot load {name}")
    assert said.format(port=port) in message
    assert "hf_secret" not in message
    assert len(answers.questions) == 1


@pytest.mark.server
@pytest.mark.parametrize(
    ("files", "said"),
    [
        (
            ("x-Q4.gguf", "README.md"),
            "it holds GGUF files. Name one, such as 'o/404-EntryNotFound:x-Q4.gguf': x-Q4.gguf.",
        ),
        (("README.md",), "it has no config.json"),
        (("adapter_config.json", "adapter_model.safetensors"), None),
    ],
)
def test_repositories_without_a_configuration(answers: type[_Hub], files: tuple[str, ...], said: str | None) -> None:
    answers.files = files
    if said is None:
        assert check_source("o/404-EntryNotFound") == ("o/404-EntryNotFound", None)
    else:
        assert said in refusal("o/404-EntryNotFound")
    assert len(answers.questions) == 2


@pytest.mark.server
@pytest.mark.parametrize(
    ("files", "said"),
    [
        (("b.gguf", "a/x.gguf", "README.md"), "there is no such file. Its GGUF files are a/x.gguf, b.gguf."),
        (
            ("config.json",),
            "there is no such file. o/404-EntryNotFound has no GGUF files: give it itself as the model.",
        ),
    ],
)
def test_a_gguf_file_that_is_not_there_is_answered_with_those_that_are(
    answers: type[_Hub], files: tuple[str, ...], said: str
) -> None:
    answers.files = files
    assert refusal("o/404-EntryNotFound:x.gguf") == f"Cannot load o/404-EntryNotFound:x.gguf: {said}"
    assert answers.questions[0] == "/o/404-EntryNotFound/resolve/main/x.gguf"


def test_what_is_on_this_machine_has_no_revision(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "x.gguf").touch()
    for source in (tmp_path, str(tmp_path), tmp_path / "x.gguf", "embedded"):
        assert check_source(source) == (str(source), None)
        with pytest.raises(InvalidParameterError, match="is on this machine, and only a model id of the Hub has rev"):
            check_source(source, revision="v1")


@pytest.mark.server
def test_a_gguf_file_on_the_hub_takes_one_question(answers: type[_Hub]) -> None:
    assert check_source("o/200:q/x.gguf", revision="v1") == ("o/200:q/x.gguf", "v1")
    assert answers.questions == ["/o/200/resolve/v1/q/x.gguf"]


@pytest.mark.server
def test_a_model_on_the_hub_takes_one_question(answers: type[_Hub]) -> None:
    assert check_source("o/200", revision="v1") == ("o/200", "v1")
    assert answers.questions == ["/o/200/resolve/v1/config.json"]


@pytest.mark.server
@pytest.mark.parametrize("is_downloaded", [True, False])
def test_a_hub_that_never_answers(
    monkeypatch: pytest.MonkeyPatch, empty_cache: Path, is_downloaded: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """Its socket takes connections, and nobody reads them. What was downloaded is loaded as it is."""
    monkeypatch.setattr(hub, "_SECONDS", 0.1)
    caplog.set_level(logging.INFO, "langchain_specdec")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        point_to(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}")
        if is_downloaded:
            download(empty_cache)
            assert check_source(ID) == (str(empty_cache / "models--somebody--something" / "snapshots" / "abc"), None)
            assert f"cannot be reached (it does not answer): {ID} is loaded as it was downloaded" in caplog.text
        else:
            assert "cannot be reached: it does not answer. Download it where" in refusal(ID)


@pytest.mark.server
def test_a_hub_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    point_to(monkeypatch, f"http://me:hf_secret@127.0.0.1:{port}")
    message = refusal(ID)
    assert f"http://***@127.0.0.1:{port} cannot be reached: the connection is refused." in message
    assert "hf_secret" not in message


@pytest.mark.server
def test_a_hub_that_is_away_is_waited_for_once(monkeypatch: pytest.MonkeyPatch, empty_cache: Path) -> None:
    """A model and its draft model are looked for one after the other, and by the command line before."""
    questions: list[str] = []

    def ask(name: str, *_: Any) -> None:
        questions.append(name)
        raise TimeoutError

    point_to(monkeypatch, "http://127.0.0.1:1")
    monkeypatch.setattr(hub, "_head", ask)
    download(empty_cache)
    folder = str(empty_cache / "models--somebody--something" / "snapshots" / "abc")
    for _ in range(3):
        assert check_source(ID) == (folder, None)
    assert questions == [ID]
    monkeypatch.setattr(hub, "_KNOWN_SECONDS", 0.0)
    point_to(monkeypatch, "http://127.0.0.1:2")
    for _ in range(2):
        check_source(ID)
    assert len(questions) == 3


@pytest.mark.parametrize("is_downloaded", [True, False])
@pytest.mark.parametrize(("token", "said"), [(True, "token=True takes the"), ("hf_\u2026", "Copy it")])
def test_a_token_that_cannot_be_sent(
    monkeypatch: pytest.MonkeyPatch, empty_cache: Path, is_downloaded: bool, token: str | bool, said: str
) -> None:
    point_to(monkeypatch, "http://127.0.0.1:1")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(empty_cache / "token"))
    if is_downloaded:
        download(empty_cache)
        assert check_source(ID, token=token) == (ID, None)
    else:
        message = refusal(ID, token=token)
        assert said in message
        assert "hf_\u2026" not in message


@pytest.mark.server
def test_what_was_downloaded_is_left_to_transformers_where_the_hub_answers(
    answers: type[_Hub], empty_cache: Path
) -> None:
    download(empty_cache)
    for status in ("200", "401-GatedRepo", "404-EntryNotFound"):
        name = f"o/{status}"
        (empty_cache / f"models--{name.replace('/', '--')}").symlink_to(
            empty_cache / f"models--{ID.replace('/', '--')}"
        )
        assert check_source(name) == (name, None)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError("[Errno -2] Name or service not known"), "its name is not found"),
        (OSError("HTTPSConnectionPool: /o/x/resolve/main: Failed to resolve 'huggingface.co'"), "name is not found"),
        (OSError("/o/x/resolve/main/config.json: Max retries: [Errno 111] Connection refused"), "is refused"),
        (OSError("Unable to connect to proxy"), "the proxy does not let it through"),
        (OSError("[SSL: CERTIFICATE_VERIFY_FAILED]"), "certificate is not trusted"),
        (TimeoutError(), "it does not answer"),
        (OSError("odd"), "there is no connection (OSError)"),
    ],
)
def test_why_a_hub_is_out_of_reach(error: Exception, said: str) -> None:
    assert said in unreachable(error)


def test_nothing_is_waited_for_longer_than_said() -> None:
    """A name server that does not answer keeps a request from its own time-out."""
    event = threading.Event()
    with pytest.raises(TimeoutError, match=r"within 0\.01 seconds"):
        within(0.01, event.wait)
    event.set()
    assert within(5, lambda: 7) == 7
    with pytest.raises(KeyError):
        within(5, lambda: {"a": 1}["b"])


@pytest.mark.parametrize("given", [5, None, ["embedded"], object()])
def test_what_is_no_name_is_told_by_its_type(given: Any) -> None:
    with pytest.raises(InvalidParameterError, match=rf"an id, .* got {type(given).__name__}\.$"):
        check_source(given)
