"""Exported programs give the numbers of the model they were made of, for other rows and tokens than were traced."""

import subprocess
import sys

import pytest
import torch

from tests.support.models.folders import small_pretrained
from x2vlm.inference.export import export_programs

TEXTS = ["a dog", "two people on a red bus in the street", "a bus"]


@pytest.mark.parametrize("kind", ["bert", pytest.param("xlm-roberta", marks=pytest.mark.slow)])
def test_programs_give_what_the_model_gives(kind, tmp_path):
    pretrained = small_pretrained(kind, tmp_path)
    model = pretrained.model
    paths = export_programs(pretrained, tmp_path / "programs")
    programs = {name: torch.export.load(path).module() for name, path in paths.items()}
    assert set(programs) == {"image", "text", "match"}
    torch.manual_seed(0)
    with torch.no_grad():
        for rows in (1, 3):
            pixels = torch.randn(rows, 3, 64, 64)
            ids, mask = pretrained.processor.texts(TEXTS[:rows])
            image_feature, summary, patches = programs["image"](pixels)
            text_feature, states = programs["text"](ids, mask)
            logits = programs["match"](states, mask, summary, patches)
            vision = model.encode_image(pixels)
            expected = model.encode_text(ids, mask)
            close = {"rtol": 0, "atol": 1e-5}
            torch.testing.assert_close(image_feature, model.project_vision(vision), **close)
            torch.testing.assert_close(text_feature, model.project_text(expected), **close)
            torch.testing.assert_close(logits, model.match(model.fuse(expected, mask, vision)), **close)


@pytest.mark.slow
def test_a_program_needs_torch_alone(tmp_path):
    paths = export_programs(small_pretrained("bert", tmp_path), tmp_path / "programs")
    code = (
        "import sys, torch; sys.path[:] = [p for p in sys.path if p]; "
        f"program = torch.export.load({str(paths['image'])!r}).module(); "
        "assert program(torch.zeros(5, 3, 64, 64))[0].shape == (5, 16); "
        "assert not {'x2vlm', 'timm', 'transformers'} & set(sys.modules)"
    )
    environment = {"PATH": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-1500:]
