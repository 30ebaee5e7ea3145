"""Which weights a job changes, and how: a class per `method.type`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from app.kit.wire import Strict


class _Adapter(Strict):
    """Low-rank adapters (Hu et al., 2021): the update of a weight is `alpha / rank · B A`."""

    rank: int = Field(8, ge=1, le=512, description="Rank of the update.")
    alpha: float = Field(0, gt=0, le=65536, validate_default=False, description="Default: twice the rank.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Share of an adapter's inputs that a step leaves out.")
    target_modules: Literal["all-linear"] | Annotated[list[str], Field(min_length=1, max_length=64)] = Field(
        "all-linear", description="Names of the modules that are adapted, or all linear layers but the output's."
    )
    plus: float | None = Field(
        None, ge=1, le=1000, description="LoRA+: the learning rate of B is so many times that of A. Default: the same."
    )

    @model_validator(mode="after")
    def _default_alpha(self) -> _Adapter:
        if "alpha" not in self.model_fields_set:
            self.alpha = 2.0 * self.rank
            self.model_fields_set.discard("alpha")  # what was asked for is told from what follows of it
        return self


class Lora(_Adapter):
    """Low-rank adapters. `variant`: `rslora` divides alpha by the root of the rank (Kalajdzievski, 2023), `dora` learns the
    magnitude of a weight apart (Liu et al., 2024), `pissa` begins with the weight's principal part (Meng et al., 2024)."""

    type: Literal["lora"] = Field("lora", description="The method.")
    variant: Literal["rslora", "dora", "pissa"] | None = Field(None, description="Default: plain LoRA.")

    def saved(self) -> Lora:
        """The method of the adapter that this one is saved as: PiSSA's becomes a plain one of twice the rank."""
        if self.variant != "pissa":
            return self
        twice = {"rank": 2 * self.rank, "alpha": 2 * self.alpha, "variant": None}
        return self.model_copy(update=twice)


class Qlora(_Adapter):
    """Low-rank adapters on a base model whose weights are quantised while they train (Dettmers et al., 2023)."""

    type: Literal["qlora"] = Field("qlora", description="The method.")
    quantization: Literal["nf4", "fp4", "int8"] = Field("nf4", description="What the base model's weights are kept in.")
    double_quantization: bool = Field(True, description="Whether the scales of nf4 and fp4 are quantised too.")
    variant: Literal["rslora"] | None = Field(None, description="Default: plain LoRA.")

    def saved(self) -> Qlora:
        """The method of the adapter that this one is saved as."""
        return self


class Full(Strict):
    """All weights are trained, in fp32."""

    type: Literal["full"] = Field("full", description="The method.")


class Freeze(Strict):
    """The last layers are trained, in fp32; what is before and after them is not."""

    type: Literal["freeze"] = Field("freeze", description="The method.")
    layers: int = Field(2, ge=1, le=1000, description="So many of the last layers are trained.")


class _LowRank(Strict):
    """All weights are trained, in fp32; of the linear layers the optimiser keeps what a projection leaves of their gradients."""

    rank: int = Field(16, ge=1, le=8192, description="Rank to which gradients are projected.")
    update_interval: int = Field(200, ge=1, le=10_000_000, description="Steps between one projection and the next.")


class Galore(_LowRank):
    """GaLore (Zhao et al., 2024): AdamW in the principal subspace of a weight's gradients."""

    type: Literal["galore"] = Field("galore", description="The method.")
    scale: float = Field(2.0, gt=0, le=65536, description="Its linear layers' steps are so many times AdamW's.")


class Apollo(_LowRank):
    """APOLLO (Zhu et al., 2024): gradients, scaled channel by channel as AdamW scales a random projection of them."""

    type: Literal["apollo"] = Field("apollo", description="The method.")
    scale: float = Field(32.0, gt=0, le=65536, description="The linear layers' steps are multiplied by its root.")


class Mod(Strict):
    """Mixture-of-Depths (Raposo et al., 2024): all weights are trained, in fp32, and routers, which in every second block pick
    the tokens that it processes."""

    type: Literal["mod"] = Field("mod", description="The method.")
    capacity: float = Field(
        0.125, gt=0, le=1, description="Share of a text's tokens that such a block processes while it trains."
    )


# All of the model's weights are trained.
Whole = Full | Galore | Apollo | Mod
Method = Lora | Qlora | Full | Freeze | Galore | Apollo | Mod
METHODS: dict[str, type[Method]] = {
    "lora": Lora, "qlora": Qlora, "full": Full, "freeze": Freeze, "galore": Galore, "apollo": Apollo, "mod": Mod,
}  # fmt: skip
