"""What an experiment says of test images among its rows."""

from x2vlm.config import FrozenConfig
from x2vlm.data.duplicates.decontamination import DecontaminationConfig
from x2vlm.data.duplicates.id_files import IdFile, LinkFile


class DecontaminateConfig(FrozenConfig):
    """How leaks are searched for, and the upstream files that list test images in addition to the held-out sources."""

    rule: DecontaminationConfig = DecontaminationConfig()
    tests: tuple[IdFile, ...] = ()
    links: tuple[LinkFile, ...] = ()
    readers: tuple[str, ...] = ()  # the reader of each `rows` artifact, which defines the meaning of its row keys
    test_readers: tuple[str, ...] = ()  # the same for `test_rows`
