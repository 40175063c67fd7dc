"""Stage 3, `score`: what can only be known by looking at the pixels, measured once and never judged here.

config   which model, and what is measured
stage    parts, and the tables that are written
rows     decoding ahead of the model, and what becomes of one row
"""

from pipelines.s3_score.config import FOLDER, ScoreConfig
from pipelines.s3_score.stage import SCORE, SCORE_SCHEMA

__all__ = ["FOLDER", "SCORE", "SCORE_SCHEMA", "ScoreConfig"]
