"""The audit report of a run: one HTML file that opens offline and prints.

Everything in it comes from the run's folder and its pictures, so that the same run gives the same bytes. Nothing is
computed with its model: what takes that is measured beforehand, by `evaluate` and `measure_faithfulness`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from gainmtl_lib.data.findings import DataError
from gainmtl_lib.decisions import OFF_THE_DEFECT_IOU
from gainmtl_lib.evaluation.audit import Audit, audit_run
from gainmtl_lib.evaluation.intervals import CONFIDENCE, FEWEST_GROUPS, RESAMPLES, SEED
from gainmtl_lib.evaluation.novelty import is_stale as novelty_is_stale
from gainmtl_lib.evaluation.novelty import stored_novelty
from gainmtl_lib.explain.audit_report import wording, words
from gainmtl_lib.explain.audit_report.evidence import Evidence
from gainmtl_lib.explain.audit_report.figures import report_figures
from gainmtl_lib.explain.audit_report.gallery import Gallery, galleries
from gainmtl_lib.explain.audit_report.head import file_digests, head_rows, run_name, settings_rows, started
from gainmtl_lib.explain.audit_report.limits import known_limits, marks
from gainmtl_lib.explain.audit_report.tables import (
    DECISION,
    FLIPS,
    calm_rows,
    explanation_rows,
    faithfulness_rows,
    shift_rows,
)
from gainmtl_lib.explain.measured_faithfulness import is_stale as faithfulness_is_stale
from gainmtl_lib.explain.measured_faithfulness import stored_faithfulness
from gainmtl_lib.files import atomic_path
from gainmtl_lib.map_scale import CALM_SHARE
from gainmtl_lib.runs import Run, load_run

TEMPLATE = "report.html.jinja"


def write_report(
    run: Run | str | Path,
    path: str | Path | None = None,
    *,
    required_recall: float = 0.99,
    data_root: str | Path | None = None,
) -> Path:
    """Write the audit report of an evaluated run.

    The run's pictures are shown where they are at hand; without them its maps are shown alone.

    Args:
        run: finished and evaluated, or its folder.
        path: of the file; ``report.html`` in the run's folder by default.
        required_recall: what the line demands, in (0, 1]; the threshold for it is chosen on validation.
        data_root: where the pictures lie now, when they moved since the training.

    Returns:
        The file's path.

    Raises:
        RunError: no run, not finished, not evaluated, or its files are damaged or do not belong together.
        ValueError: a recall outside (0, 1].
        DataError: `data_root` is no folder.
        FileError: the file cannot be written.
    """
    run = load_run(run.folder if isinstance(run, Run) else run)
    path = run.folder / "report.html" if path is None else Path(path)
    root = _checked_root(data_root)
    text = report_html(run, audit_run(run, required_recall=required_recall), data_root=root)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return path


def _checked_root(data_root: str | Path | None) -> Path | None:
    if data_root is None:
        return None
    root = Path(data_root).expanduser().absolute()
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; data_root is the folder that the run's pictures are in now")
    return root


def report_html(run: Run, audit: Audit, *, data_root: Path | None = None) -> str:
    """The report as text."""
    return _environment().get_template(TEMPLATE).render(_content(run, audit, data_root))


def _content(run: Run, audit: Audit, data_root: Path | None) -> dict[str, Any]:
    measured, novelty = stored_faithfulness(run), stored_novelty(run)
    table = audit.table if novelty is None else audit.table.assign(novel=novelty.table["novel"])
    shown = galleries(run, table, audit.tests, audit.scales.get("cam"), data_root=data_root)
    evidence = Evidence(
        run.settings,
        run.manifest,
        audit,
        missing_pictures=_missing(shown),
        data_root=data_root,
        faithfulness=measured,
        stale_faithfulness=faithfulness_is_stale(run),
        novelty=novelty,
        stale_novelty=novelty_is_stale(run),
    )
    limits = known_limits(evidence)
    return {
        "name": run_name(run.settings),
        "settings": run.settings,
        "started": started(run.manifest),
        "data_root": evidence.pictures_below,
        "audit": audit,
        "marks": marks(evidence),
        "in_short": words.in_short(evidence, limits),
        "head": head_rows(run),
        "limits": limits,
        "decision": DECISION,
        "figures": report_figures(audit),
        "reason": words.reason_sentence(evidence),
        "explanation": explanation_rows(audit),
        "calm": calm_rows(audit),
        "faithfulness": words.faithfulness_sentence(evidence),
        "faithfulness_rows": faithfulness_rows(measured),
        "measured": measured,
        "flips": words.flip_sentence(evidence),
        "flip_rows": FLIPS if evidence.has_counterfactual else {},
        "shift": shift_rows(audit),
        "novel": words.novelty_sentence(evidence),
        "novelty": novelty,
        "galleries": shown,
        "missing_pictures": evidence.missing_pictures,
        "files": file_digests(run.folder),
        "parameters": settings_rows(run.settings),
    }


def _missing(shown: list[Gallery]) -> int:
    return sum(case.picture is None for gallery in shown for case in gallery.cases)


def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("gainmtl_lib", "explain/audit_report"),
        autoescape=True,  # file names and class names come from outside
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "rounded": wording.rounded,
        "percent": wording.percent,
        "plural": wording.plural,
        "of_count": wording.of_count,
    }
    environment.globals |= _constants()
    return environment


def _constants() -> dict[str, Any]:
    return {
        "split_names": wording.SPLITS,
        "words": words,
        "confidence": CONFIDENCE,
        "resamples": RESAMPLES,
        "resampling_seed": SEED,
        "fewest_groups": FEWEST_GROUPS,
        "calm_share": CALM_SHARE,
        "off_the_defect_iou": OFF_THE_DEFECT_IOU,
    }
