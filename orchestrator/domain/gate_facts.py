"""What a gate may know of a version: its metrics, and the facts of gate_term.FACTS."""

from orchestrator.domain.gate_term import Value
from orchestrator.domain.prompt_version import PromptVersion


def facts_of(version: PromptVersion, age_s: float, num_approvals: int) -> dict[str, Value]:
    """The version's metrics and facts by name. No metric can take a fact's name."""
    lineage = version.lineage
    return {
        **version.metrics,
        "age": age_s,
        "approvals": num_approvals,
        "base": lineage.base,
        "base.fingerprint": lineage.base_fingerprint,
        "code.version": lineage.code_version,
        "digest": version.digest,
        "seed": lineage.seed,
        "spec.digest": lineage.spec_digest,
        **{f"{split}.digest": digest for split, digest in lineage.datasets.items()},
        **{f"{split}.rows": count for split, count in lineage.num_rows.items()},
    }
