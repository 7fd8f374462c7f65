"""The objective on the batch as it is."""

from __future__ import annotations

from landscape.training.methods.protocol import Closures, Method, MiniBatch


class Plain(Method):
    """The objective on the logits of the batch."""

    def closures(self, batch: MiniBatch) -> Closures:
        """Return the losses of the batch."""
        model, objective, images = self.setting.model, self.setting.objective, batch.views[0]
        return Closures(descent=lambda: objective(model(images), batch.labels), labels=batch.labels)
