"""The verbs of ``joulecut``. They import what they need when they run: --help stays instant."""
