"""Networks that share the noise levels between them, as the two of Wan2.2 A14B do; a model of one
network is one expert for all of them."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Experts:
    """Each network works from its floor up to the floor above; the last floor is 0.

    networks: (floor as sigma, network), the noisiest first, Wan2.2 T2V: [(0.875, high), (0, low)].
    one_at_a_time: keep only the network at work on the run device, the others in main memory; it
    costs one move where the networks change, and saves a device that cannot hold both.
    ValueError unless the floors come down to 0.
    """

    def __init__(
        self, networks: Sequence[tuple[float, nn.Module]], one_at_a_time: bool = False
    ) -> None:
        floors = [floor for floor, _ in networks]
        if not floors or floors[-1] != 0 or floors != sorted(set(floors), reverse=True):
            raise ValueError(
                f"experts work from {floors} up; the floors must come down, the last to 0."
            )
        self.networks, self.one_at_a_time = tuple(networks), one_at_a_time
        self.device = next(self.networks[0][1].parameters()).device
        self._at_work: nn.Module | None = None

    def to(self, device: torch.device | str) -> "Experts":
        """Where they run. One at a time, a network moves there when it is chosen."""
        self.device = torch.device(device)
        for _, network in self.networks:
            network.to("cpu" if self.one_at_a_time else self.device)
        self._at_work = None
        return self

    def rest(self) -> None:
        """Every network to main memory; `at` brings one back if they are `one_at_a_time`."""
        for _, network in self.networks:
            network.to("cpu")
        self._at_work = None

    def at(self, sigma: Tensor | float) -> nn.Module:
        """The network of a sampling step, by the step's own sigma (): a frame that runs at less
        noise, a condition, has no say. At a floor it is the noisier one (Wan2.2: t >= boundary)."""
        # As float32, which sigmas are: 0.9 is above its own rounding.
        level = torch.as_tensor(sigma, dtype=torch.float32)
        chosen = next(network for floor, network in self.networks if level >= floor)
        if self.one_at_a_time and chosen is not self._at_work:
            if self._at_work is not None:
                self._at_work.to("cpu")
            self._at_work = chosen.to(self.device)
        return chosen
