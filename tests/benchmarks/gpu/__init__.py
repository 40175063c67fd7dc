"""What a training step costs on one GPU: the device's ceilings, a ladder from the reference's graph to ours, the rest.

    python -m tests.benchmarks.gpu --part 1 --out runs/gpu     8 minutes: device, GEMM, copy, attention, half precision
    python -m tests.benchmarks.gpu --part 2 --out runs/gpu     9 minutes: base 4M step, R0 reference graph ... R5 ours
    python -m tests.benchmarks.gpu --part 3 --out runs/gpu     9 minutes: large, clips, long texts, batch sizes, loader
    python -m tests.benchmarks.gpu --part all --tiny --device cpu --out FOLDER      the same code on at tiny sizes, no
    GPU

Needs torch 2.11 or newer and what the model, the loader and the loop import (timm, transformers, safetensors, pyarrow,
Pillow, pydantic), and no network; weights, texts and JPEG shards are made by the script. Every part writes a JSON file
after each measurement and stops starting new ones when its time is up; the table of 20 lines is made from those files.

Without a GPU nothing is measured, and every number that a GPU would have given is null: the tiny run only shows that
the script runs. It has not been run on a GPU by those who wrote it.
"""
