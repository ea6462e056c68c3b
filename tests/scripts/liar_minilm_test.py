"""scripts/liar_minilm.py: sentences, rows, what is the best, and what the page says holds."""

import sys
import unittest
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from liar_case import LiarCase  # puts scripts/ on the path

import liar_minilm as liar
import liar_minilm_tables as tables
from liar_minilm_tables import Measured, Row

TRAIN = "\n".join(
    "genre\tfile\tyear\t7\t2.5\t" + pair
    for pair in ("A man.\tA plane.", 'A  man. \t"So" he said\tsource\tsource', "A cat.\tA dog.", "")
)


class LiarEncoder(LiarCase):
    script = liar
    linears = (
        "encoder.layer.0.output.dense.weight",
        "encoder.layer.0.intermediate.dense.weight",
        "encoder.layer.0.attention.output.dense.weight",
    )
    without_biases = 0  # BERT has them everywhere
    files = {"train": TRAIN[: TRAIN.rindex("genre")], "dev": "dev", "test": "test"}

    def measure(self, *more):
        one_place = ("--ratios=0.5", "--nsamples=5", "--criteria=random_sp,flap")
        one_place += ("--allocations=uniform",)
        super().measure(*one_place, *more)

    def test_calibrates_on_drawn_distinct_sentences_without_scores(self):
        self.measure("--nsamples=2,5", "--epochs=1")
        written = (self.dir / "out/sentences.txt").read_text()
        self.assertEqual(written, 'A man.\nA plane.\n"So" he said\nA cat.\nA dog.\n')
        used = {a[a.index("--nsamples") + 1]: a for a in self.calls() if a[0] != "eval"}
        for arguments in used.values():
            self.assertIn(str(self.dir / "out/sentences.txt"), arguments)
            self.assertEqual(arguments[arguments.index("--sample-windows") + 1], "true")
        self.assertEqual(set(used), {"2", "5"})

    def test_more_sentences_than_there_are_are_refused(self):
        with self.assertRaisesRegex(liar.MeasuringError, "5 distinct sentences.* wants 6"):
            self.measure("--nsamples=6")

    def test_a_row_without_sentences_is_named(self):
        (self.dir / "train").write_text("a\tb\tc\td\t2.5\tA man.\tA plane.\nA man.\n")
        with self.assertRaisesRegex(liar.MeasuringError, "train, line 2: 1 fields"):
            self.measure()

    def test_every_place_and_candidate_has_a_row(self):
        self.measure("--nsamples=2,5", "--ratios=0.1,0.5", "--epochs=1,10")
        rows = self.rows()
        in_tables, longer, sequential = 2 * 4, 2, 2 * 2
        self.assertEqual(len(rows), 1 + 2 * 2 * (in_tables + longer + sequential))
        found = {
            (r["nsamples"], r["ratio"], r["criterion"], r["reconstruction"]): r
            for r in rows
            if (r["propagation"], r["epochs"]) in (("dense", ""), ("dense", "1"))
        }
        ways = [found["5", "0.5", "flap", kind] for kind in tables.KINDS]
        self.assertEqual([w["fidelity"] for w in ways], ["0.775", "0.875", "0.95", "0.975"])
        self.assertEqual([w["lr"] for w in ways], ["", "", "", "0.001"])  # of the least loss
        self.assertEqual([w["rows_together"] for w in ways], ["8"] * 4)
        trained = found["2", "0.1", "random_sp", "liar+adamw"]
        self.assertEqual((trained["ffn_removed"], trained["heads_removed"]), ("0.1", "0.05"))
        self.assertEqual((trained["held_out_loss"], trained["epochs"]), ("3.5", "1"))
        page = self.page()
        self.assertIn("| 50% | flap | 0.775 | 0.875 | 0.950 | 0.975 |", page)
        self.assertIn("| 50% | random_sp | 88.8% | 93.8% | 97.5% | 98.8% |", page)
        self.assertNotIn(str(self.dir), page)
        self.assertTrue((self.dir / "out/liar.svg").read_text().endswith("</svg>\n"))

    def test_allocations_have_tables_and_candidates_of_their_own(self):
        self.measure("--allocations=uniform,measured", "--epochs=1")
        asked = {a[a.index("--allocation") + 1] for a in self.calls() if a[0] != "eval"}
        self.assertEqual(asked, {"uniform", "measured"})
        rows = self.rows()[1:]
        found = [row["allocation"] for row in rows]
        self.assertEqual(found.count("measured"), found.count("uniform"))
        self.assertEqual(sum(row["best"] == "1" for row in rows), 1)
        page = self.page()
        for heading in ("## 5 sentences, uniform", "## 5 sentences, measured"):
            self.assertIn(heading, page)

    def test_the_best_is_chosen_on_dev_and_reported_on_test(self):
        self.measure()
        (best,) = [row for row in self.rows() if row["best"] == "1"]
        self.assertEqual((best["propagation"], best["dev_fidelity"]), ("mixed", "1"))
        self.assertEqual(best["fidelity"], "0.95")
        self.assertEqual(max(float(row["fidelity"]) for row in self.rows()[1:]), 0.975)
        said = "flap, liar+adamw, uniform, mixed propagation, epochs: 10"
        self.assertIn(f"| 5 | 50% | {said} | 1.000 | 0.950 | 97.5% |", self.page())

    def test_test_rows_are_seen_by_evaluations_only(self):
        self.measure()
        evaluated = {"dev": 0, "test": 0}
        for command, *arguments in self.calls():
            for split in evaluated:
                is_given = str(self.dir / split) in arguments
                evaluated[split] += is_given
                self.assertTrue(command == "eval" or not is_given)
        judged_by_dev = [row for row in self.rows() if row["dev_fidelity"]]
        self.assertEqual(evaluated, {"dev": len(judged_by_dev), "test": len(self.rows())})

    def test_a_second_call_does_nothing_and_checkpoints_go(self):
        self.measure()
        before, page = self.calls(), self.page()
        self.measure()
        self.assertEqual((self.calls(), self.page()), (before, page))
        left = [path.name for path in (self.dir / "out/work").iterdir()]
        self.assertEqual(left, ["recipes"])
        for record in (self.dir / "out/records").iterdir():
            self.assertNotIn(str(self.dir), record.read_text())

    def test_more_epochs_go_on_from_what_is_there(self):
        self.measure("--epochs=1")
        count = len(self.calls())
        self.measure("--epochs=1,10")
        longer, sequential = 1 + 2 * 2, 2 * (1 + 2)  # each made, and judged on two splits
        self.assertEqual(len(self.calls()), count + longer + sequential)
        with self.assertRaisesRegex(liar.MeasuringError, "batch_size: there"):
            self.measure("--batch-size=7")


def row(kind, fidelity, spearman=0.8, **more):
    place = {"nsamples": 256, "ratio": 0.5, "criterion": "flap"} | more
    on_dev = dict.fromkeys(("dev_fidelity", "dev_fidelity_min", "dev_spearman", "dev_pearson"), 0.0)
    quality = {"fidelity": fidelity, "fidelity_min": 0.0, "spearman": spearman, "pearson": 0.0}
    return Row(reconstruction=kind, **place, **quality, **on_dev)


class LiarStatements(unittest.TestCase):
    def setUp(self):
        fidelities = zip(tables.KINDS, (0.7, 0.8, 0.9, 0.95), strict=True)
        self.ways = [row(*way) for way in fidelities]
        self.dense = row("dense", 1.0, nsamples=0, ratio=0.0, criterion="")

    def said(self, rows):
        return tables.statements(Measured(self.dense, rows))

    def of(self, criterion, liar_fidelity, liar_spearman=0.8):
        """All ways of another criterion."""
        rows = [replace(way, criterion=criterion) for way in self.ways]
        rows[2] = row("liar", liar_fidelity, liar_spearman, criterion=criterion)
        return rows

    def test_the_order_holds_where_each_way_is_better(self):
        said = self.said(self.ways)[0]
        self.assertEqual(
            said,
            "Fidelity: none < bias < liar < liar+adamw: in 1 of 1 places (sentences,"
            " allocation, ratio, criterion)",
        )

    def test_an_exception_is_listed_with_its_numbers(self):
        lines = self.said([*self.ways, *self.of("random_sp", 0.95)])[0].splitlines()
        self.assertIn("in 1 of 2 places", lines[0])
        exception = "    * 256 sentences, uniform, 50%, random_sp: liar 0.9500, liar+adamw 0.9500"
        self.assertEqual(lines[1:], [exception])

    def test_a_bound_says_which_criteria_reach_it(self):
        rows = [*self.ways, *self.of("random_sp", 0.8999, 0.75)]
        at_half, at_30, spearman, _ = self.said(rows)[1:]
        self.assertEqual(
            at_half,
            "Fidelity of liar at 50%, at least 0.9000: 256 sentences: reached by flap, uniform"
            " (0.9000); missed by random_sp, uniform (0.8999)",
        )
        self.assertIn("at 30%, at least 0.9550: not measured", at_30)
        self.assertIn(
            "reached by flap, uniform (100.00%); missed by random_sp, uniform (93.75%)", spearman
        )

    def test_the_best_is_held_against_its_own_bound(self):
        self.ways[3] = row("liar+adamw", 0.95, 0.78, epochs=10, best=1)
        self.assertEqual(
            self.said(self.ways)[-1],
            "Spearman of the best, of the dense at 50%, at least 98.00%: 256 sentences: missed by"
            " flap, liar+adamw, uniform, dense propagation, epochs: 10 (97.50%)",
        )


if __name__ == "__main__":
    unittest.main()
