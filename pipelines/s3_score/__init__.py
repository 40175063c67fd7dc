"""Stage 3, `score`: measurements of the pixels, computed once; no threshold is applied here.

config   the model, and what is measured
stage    parts, and the tables that are written
rows     decoding ahead of the model, and the scores of one row
"""

from pipelines.s3_score.config import FOLDER, ScoreConfig
from pipelines.s3_score.stage import SCORE, SCORE_SCHEMA

__all__ = ["FOLDER", "SCORE", "SCORE_SCHEMA", "ScoreConfig"]
