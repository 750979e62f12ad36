"""A daemon: forked twice, in a session of its own, with all standard streams closed; it then loads its model.

python -m tests.support.hosts.daemon REPORT, a file that it writes what came of it to, as JSON.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any


def main(report: Path) -> None:
    """Become a daemon, answer, tell, and wait for SIGTERM."""
    if os.fork():
        os._exit(0)
    os.setsid()
    if os.fork():
        os._exit(0)
    # As `>&- 2>&- <&-` and many daemons leave them: no streams, and their numbers are free for other files.
    os.closerange(0, 3)
    sys.stdin = sys.stdout = sys.stderr = None
    found: dict[str, Any] = {"pid": os.getpid()}
    try:
        from langchain_specdec import SpeculativeLLM

        llm = SpeculativeLLM.from_model_id(os.environ["MODEL_ID"], num_slots=1, max_new_tokens=24)
        found["texts"] = [llm.invoke("The sea"), "".join(llm.stream("The sea"))]
    except BaseException:
        found["error"] = traceback.format_exc()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    partial = report.with_suffix(".part")
    partial.write_text(json.dumps(found), encoding="utf-8")
    partial.rename(report)
    signal.pause()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
