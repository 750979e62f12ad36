"""How tgi_launcher reads TGI: log lines, secrets in them, causes of failures, metrics."""

import json
import random
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tgi_launcher import NotRunningError, Reason, Stage
from tgi_launcher.diagnosis import Evidence, diagnose
from tgi_launcher.logs import LogRecord, parse_line, stage_of
from tgi_launcher.metrics import Metrics, parse_metrics
from tgi_launcher.model_info import ModelInfo
from tgi_launcher.redaction import Redactor

TIME = "2026-01-08T15:02:49.123456Z"


# Lines


@pytest.mark.parametrize(
    ("line", "record"),
    [
        (
            f"{TIME}  INFO text_generation_launcher: Using attention flashinfer - Prefix caching true",
            LogRecord("Using attention flashinfer - Prefix caching true", "INFO", "text_generation_launcher"),
        ),
        (
            f"{TIME}  INFO shard-manager: text_generation_launcher: Starting shard rank=1",
            LogRecord("Starting shard rank=1", "INFO", "text_generation_launcher", 1),
        ),
        (
            f"\x1b[2m{TIME}\x1b[0m \x1b[32m INFO\x1b[0m \x1b[2mtext_generation_router\x1b[0m\x1b[2m:\x1b[0m "
            "\x1b[2mrouter/src/server.rs\x1b[0m\x1b[2m:\x1b[0m\x1b[2m2354:\x1b[0m Connected",
            LogRecord("router/src/server.rs:2354: Connected", "INFO", "text_generation_router"),
        ),
        (
            json.dumps({
                "timestamp": TIME, "level": "ERROR", "fields": {"message": "Shard 0 failed to start"},
                "target": "text_generation_launcher", "span": {"rank": 2, "name": "shard-manager"}, "spans": [],
            }),
            LogRecord("Shard 0 failed to start", "ERROR", "text_generation_launcher", 2),
        ),
        (
            json.dumps({"timestamp": TIME, "level": "INFO", "message": "Warming up model", "target": "t", "spans": []}),
            LogRecord("Warming up model", "INFO", "t"),
        ),
        ("Error: ShardCannotStart", LogRecord("Error: ShardCannotStart")),
        ("{not json", LogRecord("{not json")),
        ("[1, 2]", LogRecord("[1, 2]")),
        ("", LogRecord("")),
    ],
)  # fmt: skip
def test_every_form_of_line_is_read(line, record):
    assert parse_line(line + "\n") == record


@given(st.text())
def test_no_line_is_too_strange(line):
    record = parse_line(line)
    assert record.lines()
    stage_of(record)


def test_json_that_is_not_as_expected_is_no_obstacle():
    assert parse_line('{"level": 3}').message == ""
    assert parse_line('{"level": "INFO", "fields": [1], "spans": [1], "span": "x", "message": null}').message == ""


def test_a_start_goes_through_its_stages():
    messages = [
        "Args {\n}", "Starting check and download process for m", "Successfully downloaded weights for m",
        "Waiting for shard to be ready...", "Shard ready in 12.3s", "Starting Webserver", "Warming up model",
        "Using backend V3", "Connected",
    ]  # fmt: skip
    stages = [stage_of(LogRecord(message, "INFO")) for message in messages]
    assert None not in stages
    positions = [stage.position for stage in stages if stage is not None]
    assert positions == sorted(positions)
    assert stage_of(LogRecord("Terminating shard", "INFO")) is None
    assert stage_of(LogRecord("Unable to find image 'x' locally")) is Stage.PULL


def test_the_dump_of_options_is_one_line():
    assert LogRecord('Args {\n  api_key: Some("k"),\n}', "INFO").lines() == ["INFO Args { … }"]


# Secrets


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1))
def test_a_key_shows_in_no_form(key):
    redact = Redactor([key])
    debug = json.dumps(key)  # as Rust's Debug writes visible ASCII
    for form in (key, debug, json.dumps(debug), f"Bearer {key}", f"--api-key={key}"):
        shown = redact(form)
        assert "***" in shown
        assert key not in shown or key in 'Bearer --api-key="\\***"'
    dump = f"Args {{\n    api_key: Some(\n        {debug},\n    ),\n}}"
    assert key not in redact(dump) or key in 'Args {\n    api_key: Some(\n        "***",\n    ),\n}'


def test_the_key_is_masked_by_its_place_too():
    # A key that came from elsewhere, so that nobody knows it.
    redact = Redactor([])
    dump = 'Args {\n    api_key: Some(\n        "un\\"known",\n    ),\n    ngrok: false,\n}'
    assert redact(dump) == 'Args {\n    api_key: Some(\n        "***",\n    ),\n    ngrok: false,\n}'


def test_the_longer_secret_is_replaced_first():
    assert Redactor(["abc", "abcdef"])("abcdef abc") == "*** ***"


# Causes


def end(*lines, returncode=1, is_docker=False):
    records = [parse_line(line) for line in lines]
    return diagnose(Evidence(records, returncode, "owner/name", 8080, is_docker))


def shard_error(text):
    return json.dumps(
        {"level": "ERROR", "fields": {"message": f"Shard complete standard error output:\n\n{text}"}, "target": "t"}
    )


def download_error(text, head="Download encountered an error: "):
    span = {"name": "download"}
    return json.dumps({"level": "ERROR", "fields": {"message": f"{head}\n{text}"}, "target": "t", "span": span})


def signaled(number):
    message = f"Shard process was signaled to shutdown with signal {number}"
    span = {"name": "shard-manager", "rank": 0}
    return json.dumps({"level": "ERROR", "fields": {"message": message}, "target": "t", "span": span})


@pytest.mark.parametrize(
    ("lines", "reason", "words"),
    [
        (
            [
                shard_error(
                    "RuntimeError: Speculate is set to `5` but this medusa models only has `3` heads, please make "
                    "them match"
                ),
                "Error: ShardCannotStart",
            ],
            Reason.SPECULATE_EXCEEDS_HEADS,
            "speculate=5, but owner/name has only 3 medusa heads",
        ),
        (
            [shard_error("NotImplementedError: Speculator decoding is not enabled for AutoModel")],
            Reason.SPECULATION_UNSUPPORTED,
            "cannot speculate",
        ),
        (
            [shard_error("torch.OutOfMemoryError: CUDA out of memory. Tried …"), "Error: ShardCannotStart"],
            Reason.OUT_OF_MEMORY,
            "memory does not hold owner/name",
        ),
        (
            [
                f"{TIME} ERROR text_generation_router: x.rs:1: Not enough memory to handle 4096 prefill tokens.",
                f"{TIME} ERROR text_generation_launcher: Webserver Crashed",
                "Error: WebserverFailed",
            ],
            Reason.OUT_OF_MEMORY,
            "4096 tokens",
        ),
        (
            [shard_error("Not enough memory to handle max_total_tokens=9000"), "Error: ShardFailed"],
            Reason.OUT_OF_MEMORY,
            "max_total_tokens=9000",
        ),
        (
            ["RepositoryNotFoundError: 401 Client Error. Repository Not Found for url", "Error: DownloadError"],
            Reason.MODEL_NOT_FOUND,
            "no model owner/name",
        ),
        (["GatedRepoError: 403 Client Error.", "Error: DownloadError"], Reason.MODEL_ACCESS_DENIED, "HF_TOKEN"),
        (["LocalEntryNotFoundError: x", "Error: DownloadError"], Reason.MODEL_NOT_FOUND, "HF_HUB_OFFLINE"),
        (["OSError: [Errno 28] No space left on device", "Error: DownloadError"], Reason.DOWNLOAD_FAILED, "disk"),
        (
            [f"{TIME} ERROR t: text-generation-server not found in PATH", "Error: DownloadError"],
            Reason.INCOMPLETE_INSTALLATION,
            "text-generation-server",
        ),
        (
            [
                "thread 'main' panicked at router/src/server.rs:1:",
                'failed to build prometheus recorder: FailedToCreateHTTPListener("Address already in use")',
                "Error: WebserverFailed",
            ],
            Reason.PORT_TAKEN,
            "metrics exporter",
        ),
        (
            [f"{TIME} ERROR t: Failed to bind to 127.0.0.1:8080: Address already in use", "Error: WebserverFailed"],
            Reason.PORT_TAKEN,
            "8080",
        ),
        (
            [shard_error("torch.distributed.DistNetworkError: … EADDRINUSE"), "Error: ShardCannotStart"],
            Reason.PORT_TAKEN,
            "master_port",
        ),
        (
            ['Error: NotEnoughCUDADevices("`sharded` is true but only found 1 CUDA devices")'],
            Reason.NOT_ENOUGH_GPUS,
            "fewer GPUs",
        ),
        (
            ['Error: ArgumentValidation("`validation_workers` must be > 0")'],
            Reason.INVALID_ARGUMENTS,
            "`validation_workers` must be > 0",
        ),
        (
            [
                f"{TIME} ERROR shard-manager: text_generation_launcher: "
                "Shard process was signaled to shutdown with signal 9 rank=1",
                f"{TIME} ERROR text_generation_launcher: Shard 1 failed to start",
                "Error: ShardCannotStart",
            ],
            Reason.KILLED,
            "SIGKILL",
        ),
        (
            [shard_error("Traceback\nValueError: Unsupported model type flubber"), "Error: ShardCannotStart"],
            Reason.SHARD_CANNOT_START,
            "Unsupported model type flubber",
        ),
        (
            ["memory allocation of 8589934592 bytes failed", "Error: WebserverFailed"],
            Reason.OUT_OF_MEMORY,
            "main memory does not hold",
        ),
        (
            [shard_error("terminate called after throwing an instance of 'std::bad_alloc'"), "Error: ShardCannotStart"],
            Reason.OUT_OF_MEMORY,
            "main memory",
        ),
        (
            [shard_error("OSError: [Errno 12] Cannot allocate memory"), "Error: ShardCannotStart"],
            Reason.OUT_OF_MEMORY,
            "main memory",
        ),
        (
            [shard_error("RuntimeError: [enforce fail at x.cpp:1] DefaultCPUAllocator: can't allocate memory")],
            Reason.OUT_OF_MEMORY,
            "main memory",
        ),
        (
            [
                download_error(
                    "  File \"x.py\", line 1, in weight_files\n    except LocalEntryNotFoundError:\n"
                    "FileNotFoundError: No local weights found in /models/x with extension .bin"
                ),
                "Error: DownloadError",
            ],
            Reason.MODEL_NOT_FOUND,
            "The folder /models/x holds no weights",
        ),
        (
            [
                download_error(
                    "huggingface_hub.errors.EntryNotFoundError: No .bin weights found for model a/b and revision None."
                )
            ],
            Reason.MODEL_NOT_FOUND,
            "no weights of a/b that it could load",
        ),
        *(
            ([download_error(text), "Error: DownloadError"], Reason.DOWNLOAD_FAILED, "The Hub cannot be reached")
            for text in (
                "requests.exceptions.ConnectionError: (MaxRetryError('HTTPSConnectionPool(host=\'huggingface.co\', "
                "port=443): Max retries exceeded with url: /api/models/a/b'), '(Request ID: 1)')",
                "requests.exceptions.ProxyError: (MaxRetryError('x'))",
                "httpx.ConnectError: [Errno -2] Name or service not known",
                "requests.exceptions.ReadTimeout: (ReadTimeoutError('Read timed out.'))",
            )
        ),
        (
            [shard_error("Traceback\nModuleNotFoundError: No module named 'sentencepiece'"), "Error: ShardCannotStart"],
            Reason.INCOMPLETE_INSTALLATION,
            "has no module sentencepiece",
        ),
        (
            [shard_error("ModuleNotFoundError: No module named 'mamba'\nValueError: x"), "Error: ShardCannotStart"],
            Reason.SHARD_CANNOT_START,
            "ValueError: x",
        ),
        (
            [f"{TIME} ERROR text_generation_launcher: Exec format error (os error 8)", "Error: ShardCannotStart"],
            Reason.INCOMPLETE_INSTALLATION,
            "another kind of processor",
        ),
        *(
            (
                [
                    signaled(number),
                    json.dumps({"level": "ERROR", "fields": {"message": "Shard 0 failed to start"}, "target": "t"}),
                    "Error: ShardCannotStart",
                ],
                Reason.KILLED,
                words,
            )
            for number, words in (
                (11, "A shard crashed (SIGSEGV"), (4, "another processor"), (7, "shared memory"),
                (6, "gave up (SIGABRT)"), (9, "main memory"), (15, "somebody stopped it"), (40, "ended by signal 40"),
            )
        ),
        (
            [
                download_error("", head="Download process was signaled to shutdown with signal 9: "),
                "Error: DownloadError",
            ],
            Reason.KILLED,
            "The download was killed by SIGKILL",
        ),
        (
            [
                download_error("requests.exceptions.InvalidSchema: No connection adapters were found for 'x'"),
                "Error: DownloadError",
            ],
            Reason.DOWNLOAD_FAILED,
            "InvalidSchema: No connection adapters were found",
        ),
        (["Error: ShardFailed"], Reason.SHARD_FAILED, "died while serving"),
        (["Error: WebserverCannotStart"], Reason.WEBSERVER_FAILED, "WebserverCannotStart"),
        ([], Reason.EXITED, "exit code 1"),
    ],
)  # fmt: skip
def test_the_cause_is_told_in_one_sentence(lines, reason, words):
    diagnosis = end(*lines)
    assert diagnosis.reason is reason
    assert words in diagnosis.summary
    assert "\n" not in diagnosis.summary
    assert diagnosis.summary.endswith(".")


@pytest.mark.parametrize(
    ("returncode", "reason", "words"),
    [
        (2, Reason.INVALID_ARGUMENTS, "exit code 2"),
        (101, Reason.EXITED, "panicked"),
        (0, Reason.STOPPED, "somebody stopped it, or it is another program"),
        (-9, Reason.KILLED, "SIGKILL"),
        (-99, Reason.KILLED, "signal 99"),
        (None, Reason.KILLED, "The process that watches over TGI was killed"),
    ],
)
def test_without_words_the_exit_code_counts(returncode, reason, words):
    diagnosis = end(returncode=returncode)
    assert (diagnosis.reason, words in diagnosis.summary) == (reason, True)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("docker: Cannot connect to the Docker daemon at unix:///x. Is the docker daemon running?", "daemon"),
        ('docker: Error from daemon: could not select device driver "" with capabilities: [[gpu]].', "Toolkit"),
        ("docker: Error response from daemon: manifest for x not found: manifest unknown", "docker_image"),
        ("docker: permission denied while trying to connect to the Docker daemon socket at unix", "group docker"),
        ("docker: something new.", "could not run the container"),
    ],
)  # fmt: skip
def test_what_docker_says_is_told(line, words):
    diagnosis = end(line, returncode=125, is_docker=True)
    assert diagnosis.reason is Reason.DOCKER_FAILED
    assert words in diagnosis.summary


def test_a_taken_port_is_dockers_word_for_it():
    line = "docker: Error response from daemon: driver failed: Bind for 0.0.0.0:8080 failed: port is already allocated."
    assert end(line, returncode=125, is_docker=True).reason is Reason.PORT_TAKEN


@pytest.mark.parametrize("level", ["INFO", "WARN"])
def test_what_an_ordinary_record_quotes_is_no_cause(level):
    line = json.dumps({"level": level, "fields": {"message": "CUDA out of memory? No."}, "target": "t"})
    assert end(line).reason is Reason.EXITED


@pytest.mark.parametrize(("returncode", "reason"), [(0, Reason.STOPPED), (-9, Reason.KILLED)])
def test_an_error_of_an_earlier_request_is_not_why_it_was_stopped(returncode, reason):
    message = "Request failed during generation: Server error: CUDA out of memory"
    line = json.dumps({"level": "ERROR", "message": message, "target": "text_generation_router"})
    assert end(line, returncode=returncode).reason is reason


# Metrics


def exposition(passes, *, tokens_over=(), requests=0, refused=0):
    """What TGI would answer after some forward passes of requests, in the words of its exporter."""
    return f"""# TYPE tgi_request_count counter
tgi_request_count {requests + refused}

# TYPE tgi_request_failure counter
tgi_request_failure{{err="validation"}} {refused}

# TYPE tgi_queue_size gauge
tgi_queue_size 2

# TYPE tgi_request_skipped_tokens summary
tgi_request_skipped_tokens{{quantile="0.5"}} 1
tgi_request_skipped_tokens{{quantile="1"}} 3
tgi_request_skipped_tokens_sum {sum(tokens_over)}
tgi_request_skipped_tokens_count {passes}

# TYPE tgi_batch_inference_duration histogram
tgi_batch_inference_duration_bucket{{method="decode",le="0.01"}} 1
tgi_batch_inference_duration_bucket{{method="decode",le="+Inf"}} 1
tgi_batch_inference_duration_sum{{method="decode"}} 0.5
tgi_batch_inference_duration_count{{method="decode"}} 1
"""


def test_tokens_per_step_are_what_was_delivered():
    # Random requests, counted pass by pass as backends/v3/src/backend.rs does.
    rng = random.Random(0)
    requests = [[0, *(rng.randint(0, 4) for _ in range(rng.randint(1, 30)))] for _ in range(20)]
    skipped = [value for passes in requests for value in passes]
    text = exposition(len(skipped), tokens_over=skipped, requests=len(requests), refused=7)
    report = parse_metrics(text, time=10.0).report(Metrics(time=0.0), 4)
    assert report.num_tokens == sum(1 + value for value in skipped)
    decoded = [1 + value for passes in requests for value in passes[1:]]
    assert report.num_decode_passes == len(decoded)
    assert report.tokens_per_step == pytest.approx(sum(decoded) / len(decoded))
    assert report.min_acceptance_rate == pytest.approx(sum(skipped) / (4 * len(decoded)))
    assert report.tokens_per_second == pytest.approx(report.num_tokens / 10)
    assert report.is_active is True
    assert report.warning is None


def test_a_window_counts_only_what_happened_in_it():
    before = parse_metrics(exposition(10, tokens_over=[9], requests=1), time=1.0)
    after = parse_metrics(exposition(31, tokens_over=[9, 40], requests=2), time=3.0)
    report = after.report(before, 4)
    assert (report.num_passes, report.num_requests, report.num_skipped) == (21, 1, 40)
    assert report.tokens_per_step == 3.0


def test_a_restart_in_between_is_no_negative_count():
    before = parse_metrics(exposition(100, tokens_over=[50], requests=9), time=1.0)
    after = parse_metrics(exposition(5, tokens_over=[4], requests=1), time=3.0)
    report = after.report(before, 4)
    assert (report.num_passes, report.num_skipped, report.tokens_per_step) == (5, 4, 2.0)


def test_nothing_counted_yet_is_zero():
    report = parse_metrics("", time=1.0).report(Metrics(time=0.0), 4)
    assert (report.tokens_per_step, report.min_acceptance_rate, report.is_active) == (0.0, 0.0, None)


@pytest.mark.parametrize(
    ("speculate", "passes", "skipped", "warns"),
    [(4, 100, 0, True), (4, 10, 0, False), (4, 100, 1, False), (0, 100, 0, False)],
)
def test_speculation_that_never_skips_is_warned_of(speculate, passes, skipped, warns):
    metrics = parse_metrics(exposition(passes, tokens_over=[skipped], requests=1), time=1.0)
    warning = metrics.report(Metrics(time=0.0), speculate).warning
    assert (warning is not None) is warns
    assert not warns or re.search(r"^4 tokens are to be drafted .* 99 decode steps", warning or "")


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (ModelInfo(), "drafted per step, but.* without flash attention"),
        (ModelInfo(is_known=True, model_type="llama"), "by n-grams, but.* without flash attention"),
        (ModelInfo(True, "Medusa", 3, "owner/base"), "by Medusa heads, but.* trained for owner/base"),
        (ModelInfo(True, "MLP-speculator", 3), "by MLP-speculator heads, but.* trained for the model"),
    ],
)
def test_the_warning_is_of_the_speculator_in_use(model, words):
    metrics = parse_metrics(exposition(100, tokens_over=[0], requests=1), time=1.0)
    warning = metrics.report(Metrics(time=0.0), 3, model).warning
    assert warning is not None
    assert re.search(words, warning)
    assert ("n-gram" in warning) is (model.speculator is None)
    assert warning.endswith("With speculate=0 nothing would be lost.")


def test_metrics_of_something_else_are_refused():
    with pytest.raises(NotRunningError, match="Prometheus"):
        parse_metrics("<html>nothing here</html>", time=0.0)
