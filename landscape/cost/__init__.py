"""What each optimizer costs: passes, time relative to plain training, memory, beside the published table."""

from landscape.cost.measure import Cost, CostOptions, measure_costs
from landscape.cost.published import PUBLISHED_NET, PublishedCost

__all__ = ["PUBLISHED_NET", "Cost", "CostOptions", "PublishedCost", "measure_costs"]
