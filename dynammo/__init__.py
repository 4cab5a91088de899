"""DynaMMo: class-incremental learning by merging one adapter a task (arXiv 2404.14099)."""

__version__ = "0.1.0"
