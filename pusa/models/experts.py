"""Networks that share the noise levels between them, as the two of Wan2.2 A14B do; a model of one
network is one expert for all of them."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pusa.models.arrival import Arrival, Home


class Experts:
    """Each network works from its floor up to the floor above; the last floor is 0.

    networks: (floor as sigma, network), the noisiest first, Wan2.2 T2V: [(0.875, high), (0, low)].
    one_at_a_time: only the network at work is on the run device, the others are in main memory; for
    a device that cannot hold both. Where the networks change, the blocks of the one take the places
    of the other's during its first pass. streamed: not even that one is there, but two of its
    blocks at a time; every pass brings them again. ValueError unless the floors come down to 0.
    """

    def __init__(
        self,
        networks: Sequence[tuple[float, nn.Module]],
        one_at_a_time: bool = False,
        streamed: bool = False,
    ) -> None:
        floors = [floor for floor, _ in networks]
        if not floors or floors[-1] != 0 or floors != sorted(set(floors), reverse=True):
            raise ValueError(
                f"experts work from {floors} up; the floors must come down, the last to 0."
            )
        self.networks = tuple(networks)
        self.one_at_a_time, self.streamed = one_at_a_time, streamed
        self.device = next(self.networks[0][1].parameters()).device
        self._homes: dict[nn.Module, Home] = {}
        self._arrival: Arrival | None = None

    def to(self, device: torch.device | str) -> "Experts":
        """Where they run. One at a time, or streamed, a network moves there when it is chosen."""
        if self._arrival is not None:
            self.rest()
        self.device = torch.device(device)
        apart = self._apart()
        for _, network in self.networks:
            network.to("cpu" if apart else self.device)
        self._homes = {network: Home(network) for _, network in self.networks} if apart else {}
        return self

    def _apart(self) -> bool:
        """Whether networks have their home elsewhere than where they run."""
        return (self.one_at_a_time or self.streamed) and self.device.type != "cpu"

    def rest(self) -> None:
        """Every network to main memory; `at` brings one back if they are `one_at_a_time`."""
        if self._arrival is not None:
            self._arrival.send_home()
            self._arrival = None
        for _, network in self.networks:
            network.to("cpu")

    def at(self, sigma: Tensor | float) -> nn.Module:
        """The network of a sampling step, by the step's own sigma (): a frame that runs at less
        noise, a condition, has no say. At a floor it is the noisier one (Wan2.2: t >= boundary)."""
        # As float32, which sigmas are: 0.9 is above its own rounding.
        level = torch.as_tensor(sigma, dtype=torch.float32)
        chosen = next(network for floor, network in self.networks if level >= floor)
        if self._homes and (self._arrival is None or chosen is not self._arrival.network):
            self._arrival = Arrival(
                chosen, self._homes[chosen], self.device, self._arrival, not self.streamed
            )
        return chosen

    def whole(self, network: nn.Module) -> bool:
        """Whether all weights of a network that `at` gave are where it runs; else they come block
        by block as it is called, and nothing but a call may use them."""
        return self._arrival is None or self._arrival.whole
