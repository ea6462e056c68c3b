"""scripts/liar_smollm2.py: rows from sweeps, the page, and steps that are done once."""

import sys
import unittest
from pathlib import Path
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent))

from liar_case import LiarCase  # puts scripts/ on the path

import liar_smollm2 as liar

CUT = {
    "command": "coppice run",
    "perplexity": 25.0,
    "bytes": 3 << 20,
    "against_bytes": 4 << 20,
    "tokens": 512,
    "rounds": 15,
    "seconds": 0.25,
    "against_seconds": 0.5,
}


class LiarTables(LiarCase):
    script = liar
    linears = (
        "model.layers.0.mlp.down_proj.weight",
        "model.layers.0.mlp.up_proj.weight",
        "model.layers.0.self_attn.o_proj.weight",
    )
    files = {"dataset": "tokens", "text": "text"}

    def setUp(self):
        super().setUp()
        cut = mock.patch.object(liar.Experiment, "cut_out", lambda _: CUT)
        cut.start()
        self.addCleanup(cut.stop)

    def test_every_ratio_criterion_and_reconstruction_has_a_row(self):
        self.measure()
        rows = self.rows()
        self.assertEqual(len(rows), 1 + 2 * 3 * 5)
        found = {(r["ratio"], r["criterion"], r["reconstruction"]): r for r in rows}
        perplexities = [
            float(found["0.5", "flap", kind]["perplexity"]) for kind in liar.KINDS
        ]
        self.assertEqual(perplexities, [65, 45, 32.5, 30, 25])
        trained = found["0.1", "wanda_sp", liar.TRAINED]
        self.assertEqual(trained["lr"], "0.001")  # of the least held-out loss
        self.assertEqual(found["0.1", "wanda_sp", liar.LIAR]["lr"], "")
        self.assertEqual((trained["ffn_removed"], trained["heads_removed"]), ("0.1", "0.05"))
        self.assertEqual((trained["rows_together"], trained["held_out_loss"]), ("12", "3.5"))
        page = self.page()
        self.assertIn("| 50% | flap | 65.00 | 45.00 | 32.50 | 30.00 | 25.00 |", page)
        self.assertIn("3 MiB of 4 MiB", page)
        self.assertNotIn(str(self.dir), page)
        self.assertTrue((self.dir / "out/liar.svg").read_text().endswith("</svg>\n"))

    def test_the_reported_text_chooses_nothing(self):
        self.measure()
        for command, *arguments in self.calls():
            self.assertEqual(command == "eval", str(self.dir / "text") in arguments)

    def test_a_second_call_does_nothing_and_checkpoints_go(self):
        self.measure()
        before = self.calls()
        self.measure()
        self.assertEqual(self.calls(), before)
        left = [path.name for path in (self.dir / "out/work").iterdir()]
        self.assertEqual(left, ["recipes"])

    def test_more_ratios_go_on_from_what_is_there(self):
        self.measure()
        count = len(self.calls())
        self.measure("--ratios=0.1,0.3,0.5")
        self.assertEqual(len(self.calls()), count + 2 + 3 * 5)
        with self.assertRaisesRegex(liar.MeasuringError, "nsamples: there"):
            self.measure("--nsamples=7")


if __name__ == "__main__":
    unittest.main()
