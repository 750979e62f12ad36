"""Who may reach a server: hosts, origins, keys."""

from __future__ import annotations

import pytest

from langchain_specdec.errors import InvalidParameterError
from langchain_specdec.server.settings import ServerSettings
from tests.support.backends import lasting, make_chat_backend
from tests.support.served import CannedBackend, serving

KEY = "sk-Secret"
BODY = {"inputs": "x", "parameters": {"max_new_tokens": 1}}


@pytest.fixture(scope="module")
def client():
    with serving(CannedBackend(), api_key=KEY, allowed_host=["Models.Example"]) as client:
        yield client


def post(client, path="/generate", **headers):
    return client.post(path, json=BODY, headers={"authorization": f"Bearer {KEY}", **headers})


@pytest.mark.server
class TestDoors:
    @pytest.mark.parametrize(
        "host", ["localhost", "127.0.0.1:1", "LOCALHOST:8000", "[::1]:9", "10.1.2.3", "models.example"]
    )
    def test_it_answers_to_addresses_and_its_own_names(self, client, host):
        assert post(client, host=host).status_code == 200

    @pytest.mark.parametrize(
        "host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "", "[", "x@y"]
    )
    @pytest.mark.parametrize("path", ["/health", "/info", "/v1/models"])
    def test_it_answers_to_no_other_name(self, client, host, path):
        headers = {"host": host, "authorization": f"Bearer {KEY}"}
        assert client.get(path, headers=headers).status_code in (400, 403)

    @pytest.mark.parametrize(
        "origin", ["http://evil.example", "null", "http://127.0.0.1:1", "https://localhost", "http://["]
    )
    def test_it_answers_to_no_page_of_another_site(self, client, origin):
        response = post(client, origin=origin)
        assert response.status_code == 403
        assert not [name for name in response.headers if name.startswith("access-control")]

    def test_it_answers_to_no_request_that_a_browser_calls_foreign(self, client):
        assert client.get("/info", headers={"sec-fetch-site": "cross-site"}).status_code == 403

    def test_a_preflight_is_not_answered(self, client):
        headers = {"origin": "http://evil.example", "access-control-request-method": "POST"}
        response = client.options("/generate", headers=headers)
        assert response.status_code == 403
        assert "access-control-allow-origin" not in response.headers

    def test_its_own_page_may_ask(self, client):
        origin = str(client.base_url).rstrip("/")
        assert post(client, origin=origin).status_code == 200

    @pytest.mark.parametrize("path", ["/health", "/ping", "/", "/info", "/metrics"])
    def test_health_and_figures_need_no_key(self, client, path):
        assert client.get(path).status_code == 200

    @pytest.mark.parametrize(
        "path", ["/generate", "/generate_stream", "/", "/tokenize", "/chat_tokenize", "/v1/completions"]
    )
    @pytest.mark.parametrize(
        "given", [None, "Bearer no", f"bearer {KEY}", KEY, f"Bearer {KEY}x", "Bearer sk-secret", "ü"]
    )
    def test_all_else_needs_the_key(self, client, path, given):
        headers = {} if given is None else {"authorization": given.encode()}
        response = client.post(path, json=BODY, headers=headers)
        assert response.status_code == 401
        if path.startswith("/v1/"):
            assert response.json()["error"]["code"] == "invalid_api_key"
        else:
            assert response.content == b""
        assert client.get("/v1/models", headers=headers).status_code == 401

    def test_the_key_is_nowhere_to_be_seen(self, client):
        assert KEY not in repr(ServerSettings(api_key=KEY))
        assert KEY not in repr(ServerSettings(api_key=["other", KEY]))
        assert KEY not in client.post("/v1/completions", json=BODY).text


@pytest.mark.server
@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/completions", {"prompt": "abcabcabcabc", "max_tokens": 20, "temperature": 0}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "abcabcabc"}], "max_tokens": 20}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "abc"}], "max_tokens": 9, "stream": True}),
        ("/generate", {"inputs": "abcabcabcabc", "parameters": {"max_new_tokens": 20}}),
        ("/generate_stream", {"inputs": "abcabcabcabc", "parameters": {"max_new_tokens": 20}}),
    ],
)
def test_keys_share_what_is_kept_only_where_that_is_allowed(path, body, share):
    seen = []
    with (
        lasting(make_chat_backend(num_slots=4)) as backend,
        serving(backend, api_key=["sk-one", "sk-two"], share=share) as client,
    ):
        for key in ("sk-one", "sk-two", "sk-two"):
            before = cached_tokens(client)
            headers = {"authorization": f"Bearer {key}"}
            assert client.post(path, json=body, headers=headers, timeout=60).status_code == 200
            seen.append(cached_tokens(client) > before)
        assert client.post(path, json=body, headers={"authorization": "Bearer sk-one, sk-two"}).status_code == 401
    assert seen == [False, share, True]


def cached_tokens(client):
    """Prompt tokens that needed no prefill, by the server's figures."""
    lines = client.get("/metrics").text.splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith("vllm:prefix_cache_hits_total"))


def test_a_key_that_is_given_twice_is_refused_and_not_shown():
    with pytest.raises(InvalidParameterError, match="given twice") as caught:
        ServerSettings(api_key=["sk-one", "sk-one"])
    assert "sk-one" not in str(caught.value)


@pytest.mark.parametrize("key", ["", "two words", "ü", "tab\t"])
def test_what_is_no_key_is_refused_and_not_shown(key):
    with pytest.raises(InvalidParameterError) as caught:
        ServerSettings(api_key=["sk-one", key])
    assert not key or key not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value"), [("port", 70000), ("max_waiting", -1), ("request_timeout", 0.0), ("body_limit", 0)]
)
def test_settings_are_checked(name, value):
    with pytest.raises(InvalidParameterError, match=name):
        ServerSettings(**{name: value})
