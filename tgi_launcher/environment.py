"""Which variables of the environment TGI gets.

The rule: what says how this machine runs models is passed on, as an image or its administrator set it; what says what
the server is (its model, limits, addresses, keys) comes from a TGIConfig alone, though TGI would read it.
"""

from __future__ import annotations

from collections.abc import Mapping

from tgi_launcher.config import FLAGS, TGIConfig

# What TGI reads as options, beside the fields of TGIConfig. A variable of this name that happens to be around would
# change the server.
_MORE_FLAG_VARIABLES = {
    "API_KEY",
    "DISABLE_CRASH_REPORTS",
    "DISABLE_USAGE_STATS",
    "JSON_OUTPUT",
    "LOG_LEVEL",
    "MASTER_ADDR",
    "MASTER_SHARD_UDS_PATH",
    "MAX_IMAGE_FETCH_SIZE",
    "MAX_INPUT_LENGTH",
    "MESSAGES_API_ENABLED",
    "NGROK",
    "NGROK_AUTHTOKEN",
    "NGROK_EDGE",
    "RANK",
    "REQUEST_LOGPROBS",
    "SHARDED",
    "TOKENIZER_NAME",
    "WATERMARK_DELTA",
    "WATERMARK_GAMMA",
    "WORLD_SIZE",
}
# How a machine runs models. Those that are options of the launcher, too, are passed on all the same; a field wins.
_MACHINE_FLAG_VARIABLES = {"CUDA_GRAPHS", "CUDA_MEMORY_FRACTION", "DISABLE_CUSTOM_KERNELS", "HUGGINGFACE_HUB_CACHE"}
_MACHINE_VARIABLES = {
    *_MACHINE_FLAG_VARIABLES,
    "ATTENTION",
    "COMPUTE_TYPE",
    "CUDA_VISIBLE_DEVICES",
    "NVIDIA_VISIBLE_DEVICES",
    "PREFILL_CHUNKING",
    "PREFIX_CACHING",
    "TGI_WIGGLE_ROOM",
    "USE_FLASH_ATTENTION",
    "ZE_AFFINITY_MASK",
}
_FLAG_VARIABLES = ({name.upper() for name in FLAGS} | _MORE_FLAG_VARIABLES) - _MACHINE_FLAG_VARIABLES


def clean_environment(config: TGIConfig, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment without what TGI would read as options of the server.

    Args:
        config: The server.
        environ: Environment to start from.
    """
    env = {name: value for name, value in environ.items() if name not in _FLAG_VARIABLES}
    if config.hf_token is not None:
        # TGI would prefer this older name to HF_TOKEN.
        env.pop("HF_API_TOKEN", None)
    for name in _MACHINE_FLAG_VARIABLES & env.keys():
        if getattr(config, name.lower()) not in (None, False):
            del env[name]
    return env


def machine_settings(env: Mapping[str, str]) -> dict[str, str]:
    """What of an environment says how the machine runs models, to be shown."""
    return {name: env[name] for name in sorted(_MACHINE_VARIABLES & env.keys())}
