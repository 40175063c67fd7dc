"""What the files of a saved model's folder are called. Planning reads these names, so nothing here imports torch."""

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
PROCESSOR_FILE = "preprocessor_config.json"
TOKENIZER_FILES = {"wordpiece": "vocab.txt", "unigram": "tokenizer.json"}  # by `ProcessorConfig.tokenizer`
CARD_FILE = "README.md"
# Of a fine-tuned model: which task, options and labels, and the weights of the task's head if it has one.
TASK_FILE, HEAD_FILE = "task.json", "head.safetensors"

# What of a transformers folder holds its weights, best first; a sharded one is led by its index.
TEXT_WEIGHTS = (WEIGHTS_FILE, "model.safetensors.index.json", "pytorch_model.bin")

MODEL_FILES = (CONFIG_FILE, WEIGHTS_FILE)
ALL_FILES = (*MODEL_FILES, PROCESSOR_FILE, *TOKENIZER_FILES.values(), CARD_FILE, TASK_FILE, HEAD_FILE)
