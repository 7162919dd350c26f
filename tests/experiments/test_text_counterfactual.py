"""experiments/text_memorization: a small run of counterfactual memorization."""

from experiments.text_memorization.parts.counterfactual import Counterfactuals, counterfactuals


def test_a_small_run_measures_texts_canaries_and_controls():
    setting = Counterfactuals(n_texts=6, n_canaries=4, models=4, epochs=1, width=4, halves=1)
    texts, canaries, controls = counterfactuals(setting, 0)
    assert (texts["documents"], canaries["documents"]) == ("texts", "canaries")
    assert abs((6 * texts["memorization"] + 4 * canaries["memorization"]) / 10 - controls["memorization"]) < 1e-9
    assert -1 <= controls["tangents"] <= 1
    assert -1 <= controls["length_one_model"] <= 1
