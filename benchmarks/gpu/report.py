"""Describes the machine, and prints the results as tables."""

from __future__ import annotations

from typing import Any

from benchmarks.gpu.subject import Subject
from benchmarks.report import machine


def described(subject: Subject) -> dict[str, Any]:
    """Returns the machine, the GPU and the version of ONNX Runtime."""
    code = subject.cuda.machine_code()
    fields: dict[str, Any] = {
        "machine": machine(),
        "onnxruntime": subject.ort.__version__,
        "machine_code": str(code) if code is not None else None,
        "device": f"{subject.device.name}: {subject.device.reason}",
        "model": f"{subject.model.name} {subject.model.version}",
    }
    if subject.gpu is None:
        return fields | {"gpu": "no GPU was there"}
    driver = subject.cuda.driver
    return fields | {
        "gpu": driver.name(subject.gpu),
        "compute_capability": driver.capability(subject.gpu),
        "cuda": driver.cuda_version,
        "gpu_bytes": driver.memory(subject.gpu).total,
    }


def failed(results: dict[str, Any]) -> list[str]:
    """Returns the names of the checks that failed."""
    return [name for name, result in results.items() if not _is_ok(result)]


def table(results: dict[str, Any]) -> str:
    """Returns the results as lines of text."""
    lines = [f"{name}: {value}" for name, value in results["machine"].items()]
    for title in ("latency", "variants"):
        lines += ["", *_latencies(title, results.get(title, {}))]
    for title in ("answers", "throughput", "out_of_memory", "recovery", "lost", "requests"):
        lines += ["", title]
        for name, value in results.get(title, {}).items():
            lines.append(f"  {name}: {_text(value)}")
    lines += ["", f"failed: {', '.join(failed(results)) or 'none'}"]
    return "\n".join(lines)


def _is_ok(result: Any) -> bool:
    if not isinstance(result, dict):
        return True
    return "error" not in result and result.get("ok", True) and all(map(_is_ok, result.values()))


def _latencies(title: str, results: dict[str, Any]) -> list[str]:
    """Return a table of medians in microseconds, with a row for each network.

    A network that was not measured has a line with the reason.
    """
    rows = {name: value for name, value in results.items() if "1" in _keys(value)}
    others = {name: value for name, value in results.items() if name not in rows}
    lines = [title]
    if rows:
        sizes = [size for size in next(iter(rows.values())) if size.isdigit()]
        header = f"{title}: median microseconds of a batch of"
        lines = [header + "".join(f"{size:>9}" for size in sizes)]
        for name, value in rows.items():
            cells = "".join(f"{value[size]['median_us']:9.0f}" for size in sizes)
            lines.append(f"  {name}".ljust(len(header)) + cells)
    return lines + [f"  {name}: {_text(value)}" for name, value in others.items()]


def _keys(value: Any) -> list[str]:
    return list(value) if isinstance(value, dict) else []


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(one)}" for name, one in value.items())
    return str(value)
