"""scripts/make_synthetic.py: bytes that depend on seed and name alone, shapes of published models."""

import json
import math
import os
import subprocess
import sys
import tempfile
import unittest
import zlib
from pathlib import Path

import numpy as np
import torch
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "make_synthetic.py"
SMALL = "--hidden 32 --ffn 80 --heads 4 --kv-heads 2 --head-dim 8 --blocks 3 --vocab 96".split()


def headers(folder):
    """Name -> (dtype, shape) of every tensor, in the files' order."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        header.pop("__metadata__")
        ends = [info["data_offsets"][1] for info in header.values()]
        assert path.stat().st_size == 8 + length + max(ends), path
        found |= {name: (info["dtype"], tuple(info["shape"])) for name, info in header.items()}
    return found


class MakeSynthetic(unittest.TestCase):
    """Each test makes its checkpoints in a folder of its own."""

    def setUp(self):
        self.folder = tempfile.TemporaryDirectory(prefix="make_synthetic.")
        self.addCleanup(self.folder.cleanup)
        self.dir = Path(self.folder.name)

    def make(self, name, *options, expect=0):
        """Its folder; the finished process where it shall fail."""
        command = [sys.executable, SCRIPT, self.dir / name, *map(str, options)]
        done = subprocess.run(command, capture_output=True, text=True)
        self.assertEqual(done.returncode, expect, done.stderr)
        return self.dir / name if expect == 0 else done

    def files(self, folder):
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    def test_every_tensor_is_drawn_from_seed_and_name_in_one_go(self):
        # An embedding of several slabs, an odd number of elements among the tensors.
        options = [*SMALL, "--vocab", 9001, "--seed", 7, "--max-shard-size", "100KB"]
        folder = self.make("model", *options)
        checked = 0
        for path in folder.glob("*.safetensors"):
            with safe_open(path, "pt") as file:
                for name in file.keys():
                    found = file.get_tensor(name)
                    generator = np.random.Generator(np.random.SFC64([7, zlib.crc32(name.encode())]))
                    values = generator.standard_normal(found.numel(), dtype=np.float32)
                    if "norm" in name:
                        values = values * np.float32(0.1) + np.float32(1)
                    else:
                        gain = 1 / math.sqrt(6) if name.endswith(("o_proj.weight", "down_proj.weight")) else 1
                        values = values * np.float32(gain / math.sqrt(found.shape[-1]))
                    wanted = torch.from_numpy(values).to(torch.bfloat16).reshape(found.shape)
                    self.assertTrue(torch.equal(found, wanted), name)
                    checked += 1
        self.assertEqual(checked, 3 * 9 + 2)

    def test_threads_change_no_byte(self):
        options = [*SMALL, "--like", "qwen2.5-72b", "--max-shard-size", "20KB", "--tokens", 99]
        one = self.files(self.make("one", *options, "--threads", 1))
        many = self.files(self.make("many", *options, "--threads", 5))
        self.assertGreater(len(one), 4)
        self.assertEqual(one.keys(), many.keys())
        for name in one.keys() - {"tokens.h5"}:
            self.assertEqual(one[name], many[name], name)

    def test_published_models_have_their_parameters_and_take_no_room_as_headers(self):
        for name, parameters in {
            "llama-3.1-8b": 8_030_261_248,
            "llama-3.3-70b": 70_553_706_496,
            "qwen2.5-72b": 72_706_203_648,
        }.items():
            folder = self.make(name, "--like", name, "--headers-only")
            shapes = [shape for _, shape in headers(folder).values()]
            self.assertEqual(sum(map(math.prod, shapes)), parameters, name)
            sizes = [path.stat() for path in folder.glob("*.safetensors")]
            self.assertGreater(sum(size.st_size for size in sizes), 2 * parameters)
            self.assertLess(sum(size.st_blocks * 512 for size in sizes), 16 << 20)

    def test_names_and_shapes_are_those_of_the_models_class(self):
        for like in ("llama-3.1-8b", "llama-3.3-70b", "qwen2.5-72b"):
            folder = self.make(like, "--like", like, "--blocks", 2, "--vocab", 64, "--headers-only")
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
            wanted = {name: tuple(value.shape) for name, value in model.state_dict().items()}
            self.assertEqual({n: shape for n, (_, shape) in headers(folder).items()}, wanted, like)

    def test_configs_say_what_is_published(self):
        wanted = {
            "llama-3.1-8b": (500000.0, 32, 128256, "llama3"),
            "llama-3.3-70b": (500000.0, 80, 128256, "llama3"),
            "qwen2.5-72b": (1000000.0, 80, 152064, None),
        }
        for like, expected in wanted.items():
            folder = self.make(like, "--like", like, "--headers-only")
            config = json.loads((folder / "config.json").read_text())
            rope_type = (config.get("rope_scaling") or {}).get("rope_type")
            found = (config["rope_theta"], config["num_hidden_layers"], config["vocab_size"], rope_type)
            self.assertEqual(found, expected, like)
            self.assertFalse(config["tie_word_embeddings"])

    def test_headers_only_are_the_headers_of_the_checkpoint(self):
        whole = headers(self.make("whole", *SMALL, "--max-shard-size", "20KB"))
        hollow = self.make("hollow", *SMALL, "--max-shard-size", "20KB", "--headers-only")
        self.assertEqual(headers(hollow), whole)

    def test_activations_and_logits_of_a_biased_model_stay_near_one(self):
        options = ["--like", "qwen2.5-72b", *SMALL, "--hidden", 64, "--head-dim", 16, "--blocks", 12]
        folder = self.make("model", *options, "--dtype", "fp32")
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        names = dict(model.named_parameters())
        self.assertGreater(names["model.layers.0.self_attn.q_proj.bias"].abs().max().item(), 0)
        with torch.no_grad():
            out = model(torch.arange(96)[None], output_hidden_states=True)
        for hidden in out.hidden_states[1:]:
            self.assertTrue(0.05 < hidden.std().item() < 5, hidden.std())
        self.assertTrue(0.2 < out.logits.std().item() < 5, out.logits.std())

    def test_what_does_not_fit_is_refused_before_it_is_written(self):
        free = os.statvfs(self.dir)
        blocks = 2 + free.f_bavail * free.f_frsize // 1_500_000_000
        done = self.make("huge", "--like", "qwen2.5-72b", "--blocks", blocks, expect=1)
        self.assertIn("are free", done.stderr)
        self.assertIn("--headers-only", done.stderr)
        self.assertEqual(list(self.dir.iterdir()), [])

    def test_switches_that_the_family_has_not_are_refused(self):
        for flags in (["--attention-bias"], ["--mlp-bias"], ["--rope", "llama3"]):
            done = self.make("model", "--like", "qwen2.5-72b", *flags, expect=2)
            self.assertIn("qwen2.5-72b", done.stderr)


if __name__ == "__main__":
    unittest.main()
