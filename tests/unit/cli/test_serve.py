"""`specdec serve` before it serves: what it refuses, and in which order."""

from __future__ import annotations

import sys

import pytest
from typer.testing import CliRunner

from langchain_specdec.cli.app import app
from langchain_specdec.errors import InvalidParameterError
from tests.support.served import CannedBackend, serving
from tgi_launcher.extras import install_command


def serve(*arguments, **environment):
    return CliRunner().invoke(app, ["serve", *arguments], env=environment)


@pytest.fixture
def no_model(monkeypatch):
    def load(*args, **options):
        pytest.fail("a model is loaded before all is known that is wrong")

    monkeypatch.setattr("langchain_specdec.cli.serve.load_backend", load)


@pytest.mark.usefixtures("no_model")
class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["--port", "70000"], "--port must be a whole number from 0 to 65535"),
            (["--port", "x"], "--port must be a whole number"),
            (["--max-waiting", "-1"], "--max-waiting must be"),
            (["--request-timeout", "0"], "--request-timeout must be a number of seconds above 0"),
            (["--drain-timeout", "0"], "--drain-timeout must be"),
            (["--body-limit", "0"], "--body-limit must be"),
            (["--num-slots", "0"], "--num-slots must be"),
        ],
    )
    def test_values_out_of_their_range(self, arguments, said):
        result = serve("embedded", *arguments)
        assert result.exit_code == 2
        assert said in result.stderr

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [([], "Give the model, as in"), (["embedded", "-m", "other"], "The model is given twice: give one")],
    )
    def test_a_model_has_to_be_named_once(self, arguments, said):
        result = serve(*arguments)
        assert result.exit_code == 2
        assert said in result.stderr

    @pytest.mark.parametrize("key", ["two words", "schlüssel"])
    def test_a_key_that_is_none_is_not_shown(self, key):
        # In the environment, spaces stand between several.
        in_environment = key.replace(" ", " ü")
        for result in (serve("embedded", "--api-key", key), serve("embedded", SPECDEC_API_KEY=in_environment)):
            assert result.exit_code == 2
            assert "API key must be printable ASCII" in result.stderr
            assert key not in result.output
            assert in_environment not in result.output

    def test_without_the_extra_it_says_how_to_get_it(self, monkeypatch):
        for name in ("langchain_specdec.server.run", "langchain_specdec.server.app"):
            monkeypatch.delitem(sys.modules, name, raising=False)
        monkeypatch.setitem(sys.modules, "uvicorn", None)
        result = serve("embedded")
        assert result.exit_code == 1
        assert result.stderr == f"error: specdec serve needs starlette and uvicorn: {install_command('serve')}\n"

    @pytest.mark.server
    @pytest.mark.parametrize("flag", ["-m", "--model"])
    def test_the_model_may_be_given_as_other_commands_take_it(self, monkeypatch, flag):
        loaded = []

        def load(source, **options):
            loaded.append(source)
            raise InvalidParameterError

        monkeypatch.setattr("langchain_specdec.cli.serve.load_backend", load)
        serve(flag, "embedded", "--port", "0")
        assert loaded == ["embedded"]

    @pytest.mark.server
    def test_a_port_that_is_taken_is_told_before_the_model_is_loaded(self):
        with serving(CannedBackend()) as client:
            result = serve("embedded", "--port", str(client.base_url.port))
        assert result.exit_code == 2
        assert f"--port {client.base_url.port} is taken" in result.stderr

    @pytest.mark.server
    def test_an_address_of_another_machine_is_told(self):
        result = serve("embedded", "--host", "192.0.2.1")
        assert result.exit_code == 2
        assert "192.0.2.1" in result.stderr
