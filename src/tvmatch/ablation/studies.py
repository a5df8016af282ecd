"""The studies that have names: what the paper ablates, and what issue 6 asks besides."""

import difflib

from tvmatch.ablation.study import Study

SCALES = (1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0)

STUDIES = {
    "jumps": Study(
        "how the ends (t, s) of a jump are drawn",
        {
            "truncated gap (paper)": {},
            "s near t": {"jumps": "near"},
            "s far from t": {"jumps": "far"},
            "s = 0": {"jumps": "to-data"},
            "logit-normal, in order": {"jumps": "logit-normal"},
            "uniform, in order": {"jumps": "uniform"},
        },
    ),
    "target-ema": Study(
        "decay of the target's average",
        {
            "0.99 (paper)": {},
            "0": {"target_ema": 0.0},
            "0.9": {"target_ema": 0.9},
            "0.999": {"target_ema": 0.999},
        },
    ),
    "boundary": Study(
        "where the boundary term is matched",
        {"r independent (paper)": {}, "r = s": {"boundary_at_end": True}},
    ),
    "jvp": Study(
        "the gradient through the derivative dF/ds",
        {"through the JVP (paper)": {}, "JVP detached": {"detach_jvp": True}},
    ),
    "terminal-every": Study(
        "the terminal term of every n-th sample only, at equal arithmetic",  # 4 + 7 / n passes a step
        {
            "every sample (paper)": {"steps": 300},
            "every 2nd": {"steps": 440, "terminal_every": 2},
            "every 4th": {"steps": 574, "terminal_every": 4},
            "every 8th": {"steps": 677, "terminal_every": 8},
            "every sample, half the batch": {"steps": 600, "batch_size": 64},
            "every 4th, no more steps": {"steps": 300, "terminal_every": 4},
        },
        task="pictures",
        base={"target_ema": 0.95},
    ),
    "recipe": Study(
        "longer jumps and Muon, in a run of 150,000 pictures; MeanFlow beside them",
        {
            "truncated gap, AdamW": {},
            "wide gap, AdamW": {"jumps": "wide"},
            "truncated gap, Muon": {"optimizer": "muon"},
            "wide gap, Muon": {"jumps": "wide", "optimizer": "muon"},
            "MeanFlow, AdamW": {"objective": "mean-flow", "terminal_every": 1},
            "MeanFlow, Muon": {"objective": "mean-flow", "terminal_every": 1, "optimizer": "muon"},
        },
        task="pictures",
        base={"steps": 1200, "terminal_every": 4, "guidance": "1.25:2.5"},
        scales=(1.5, 2.0),
    ),
    "scaled": Study(
        "the network's output multiplied by w, at w = 2",
        {"scaled (paper)": {}, "not scaled": {"scaled": False}},
        task="pictures",
        base={"guidance": "2"},
    ),
    "weight": Study(
        "the weight 1/w^2 of each sample, w uniform in [1, 4]",
        {"1/w^2 (paper)": {}, "no weight": {"weighted": False}},
        task="pictures",
        base={"guidance": "1:4"},
        scales=SCALES,
    ),
    "constant-w": Study(
        "constant or random w in training, judged at w = 2",
        {
            "w = 2": {"guidance": "2"},
            "w uniform in [1, 3]": {"guidance": "1:3"},
            "1/w uniform in (0, 1)": {"guidance": "inverse"},
        },
        task="pictures",
        scales=(2.0,),
    ),
    "network": Study(
        "each semi-Lipschitz change removed",
        {
            "all (paper)": {},
            "LayerNorm for RMSNorm": {"norm": "layer"},
            "no QK norm": {"qk_norm": False},
            "no modulation norm": {"modulation_norm": False},
            "Xavier for spectral": {"initialisation": "xavier"},
            "none of them": {
                "norm": "layer",
                "qk_norm": False,
                "modulation_norm": False,
                "initialisation": "xavier",
            },
        },
        task="pictures",
    ),
    "w-and-calls": Study(
        "the guidance scale against the number of calls, one network for all (w uniform in [1, 4])",
        {"w uniform in [1, 4]": {}},
        task="pictures",
        base={"guidance": "1:4"},
        scales=SCALES,
    ),
    "w-and-calls-fixed": Study(
        "the guidance scale against the number of calls, a network for each w",
        {f"w = {w}": {"guidance": w} for w in ("1", "1.5", "2", "3", "4")},
        task="pictures",
    ),
}


def find_study(name: str) -> Study:
    """The study of this name; `ValueError` says which there are."""
    if name in STUDIES:
        return STUDIES[name]
    if name == "all":
        raise ValueError("'all' stands alone; leave the other names out, or leave out 'all'.")
    near = difflib.get_close_matches(name, STUDIES, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(STUDIES)}, and all."
    raise ValueError(f"no study is called {name!r}; {hint}")
