from __future__ import annotations

import fakecuda
import pytest


@pytest.mark.parametrize("trt", fakecuda.TENSORRT_10)
def test_lines_go_to_pythons_logging_and_the_telling_ones_are_kept(trt: str) -> None:
    found = fakecuda.run(
        """
        import logging
        import tensorrt_bindings as trt
        from calibrators.trtlog import LOG
        from fakecuda.report import report
        lines = []
        class Keep(logging.Handler):
            def emit(self, record): lines.append([record.levelname, record.getMessage()])
        logging.getLogger("calibrators.tensorrt").addHandler(Keep())
        logging.getLogger("calibrators.tensorrt").setLevel("DEBUG")
        say = lambda kind, text: LOG.log(getattr(trt.ILogger.Severity, kind), text)
        for kind in ("INTERNAL_ERROR", "ERROR", "WARNING", "INFO", "VERBOSE"):
            say(kind, f"100% {kind}")
        for name in ("a: b", "a: b", "(Unnamed Layer* 3) [Shuffle]_output"):
            say("WARNING", f"Missing scale and zero-point for tensor {name}, expect fall back to non-int8 ...")
        result = dict(lines=lines[:5], errors=LOG.errors(), missing=LOG.without_scale())
        LOG.clear()
        report(**result, after=[LOG.errors(), LOG.without_scale()])
        """,
        trt=trt,
    )
    assert found == {
        "lines": [
            ["CRITICAL", "100% INTERNAL_ERROR"],
            ["ERROR", "100% ERROR"],
            ["WARNING", "100% WARNING"],
            ["INFO", "100% INFO"],
            ["DEBUG", "100% VERBOSE"],
        ],
        "errors": ["100% INTERNAL_ERROR", "100% ERROR"],
        "missing": ["a: b", "(Unnamed Layer* 3) [Shuffle]_output"],
        "after": [[], []],
    }
