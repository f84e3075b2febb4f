"""What the demo can be asked."""

import dataclasses

from maskgit_pt.settings import setting
from train.demos.images import DATA_SETS


@dataclasses.dataclass(frozen=True)
class DemoSettings:
    """Each field is the value of the flag of its name."""

    data: str = setting(
        "fashion",
        f"Which images: {', '.join(DATA_SETS)}, or a folder that has one subfolder for each class.",
    )
    output: str | None = setting(
        None,
        "Folder for everything. Default: the name of --data; of a folder, that name and _demo.",
    )
    minutes: float | None = setting(
        None,
        "How long it may take; steps follow from a rate that is measured. Default: the recipes' steps.",
        least=1,
    )
    seed: int = setting(0, "Of the training and the samples; of digits, of the split.", least=0)
    files: str | None = setting(None, "Folder with the IDX files.")
    download: bool = setting(False, "Fetch images that are not here, through torchvision.")
    num_samples: int | None = setting(
        None, "Images to generate. Default: 2000; of digits 1000; of a folder 8 a class.", least=10
    )
    processes: int | None = setting(
        None, "That train side by side, a thread each. Default: the cores, at most 4.", least=1
    )
    tokenizer_config: list[str] = setting(
        (), "Changed settings of the tokenizer's recipe, e.g. num_train_steps=100,batch_size=32."
    )
    config: list[str] = setting(
        (), "Changed settings of the transformer's recipe, e.g. num_train_steps=100."
    )
    tokenizer: str | None = setting(None, "With --from: the tokenizer of these weights.")
    classifier_steps: int = setting(
        3000, "Steps of the classifier that judges; not with a folder.", least=2
    )
    few: int | None = setting(None, "Take only the first images of each part: to try it.", least=20)
