"""An experiment's shards for other programs: as WebDataset tars, as Parquet, or as X-VLM's JSON lines."""

from typing import Literal

Format = Literal["webdataset", "parquet", "xvlm"]
FORMATS: tuple[Format, ...] = ("webdataset", "parquet", "xvlm")
