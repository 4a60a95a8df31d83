"""Is everything there, unchanged, and does it agree with itself?"""

from featuredb.verification.database import MEMORY, verify
from featuredb.verification.report import Problem, Recomputed, Report

__all__ = ["MEMORY", "Problem", "Recomputed", "Report", "verify"]
