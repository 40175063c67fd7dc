#!/usr/bin/env python
"""Walk from a model, node, run or sample down to every card and upstream file, and prove each step by hashing again.

python jobs/audit_lineage.py pretrain/sample
python jobs/audit_lineage.py <sample key | fingerprint | MLflow run or model id> --store s3://bucket/prefix
"""

import sys

from pipelines import driver
from x2vlm.command_line import JobParser, one_of


def main() -> int:
    parser = JobParser(__doc__)
    parser.add_argument("target", help="node key, experiment, fingerprint or root prefix, MLflow id, or sample key")
    parser.add_argument("--store", help="the store to audit; default: $X2VLM_STORE, or runs/store")
    parser.add_argument("--tracking-uri", help="MLflow to compare with; default: the database inside the store")
    parser.add_argument("--rebuild", metavar="EXPERIMENT", help="first tell MLflow again what its manifests say")
    parser.add_argument(
        "--depth",
        type=one_of(("full", "manifests")),
        default="full",
        help="full or manifests: hash all files, or sizes only",
    )

    text, code = driver.run_as_job(driver.audit_target, parser)
    print(text)
    return code


if __name__ == "__main__":
    sys.exit(main())
