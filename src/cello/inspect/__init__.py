"""Look inside: which engine runs, and why not another one."""

from cello.inspect.explain import Explanation, LayerPlan, explain

__all__ = ["Explanation", "LayerPlan", "explain"]
