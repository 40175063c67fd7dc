"""The example in README.md runs as it stands, from the root of a checkout after a run."""

import ast

import torch

from tests.support.documentation import readme_example
from tests.support.models.folders import save_folder, small_pretrained


def test_the_example_runs_and_says_what_it_promises(project_root, tmp_path, monkeypatch, capsys):
    save_folder(small_pretrained("bert", tmp_path / "tokenizer", 3), tmp_path / "runs/store/parts/pretrain/ab/abcd")
    (tmp_path / "datasets").symlink_to(project_root / "datasets")
    monkeypatch.chdir(tmp_path)
    example = readme_example(project_root)
    assert len([line for line in example.splitlines() if line and not line.startswith(("from", "import"))]) <= 10
    names: dict[str, object] = {}
    exec(compile(example, "README.md", "exec"), names)
    features = names["features"]
    assert isinstance(features, torch.Tensor)
    assert features.shape == (9, 2)
    ranked, grounded, captions = capsys.readouterr().out.strip().split("\n")
    assert "datasets/sample/media/photos/" in ranked
    assert grounded.count("Box(") == 2
    assert len(ast.literal_eval(captions)) == 2
