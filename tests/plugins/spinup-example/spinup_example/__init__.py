"""The specification alone, so that looking up the name costs nothing; the class is imported when it is used."""

from spinup_plugins import AlgorithmSpec

SPEC = AlgorithmSpec(
    name="cem",
    cls_path="spinup_example.cem:CEM",
    family="policy optimisation",
    on_policy=True,
    learns=("policy",),
    action_spaces=("Box", "Discrete", "MultiDiscrete", "MultiBinary"),
    paper="Mannor et al. 2003, The Cross Entropy Method for Fast Policy Search",
    summary="samples policies from a Gaussian and fits it to the best of them",
    presets_path="spinup_example:cem.yml",
    spaces_path="spinup_example:spaces.yml",
)
