"""Write reports as HTML pages: one file each, which asks for nothing else.

page = tlv_jax.html_report(report, plan, src, dst)
Path("report.html").write_text(page, encoding="utf-8")
"""

from tlv_jax.pages.transfers import html_report

__all__ = ["html_report"]
