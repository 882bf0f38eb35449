from __future__ import annotations

from trtcal.files.html import HTML_MARK, document


def test_a_title_is_text_and_the_page_may_load_and_run_nothing() -> None:
    page = document("<script>alert(1)</script>", "<p>body</p>\n", "p { color: red; }\n")
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "default-src 'none'" in page
    assert HTML_MARK in page
    assert page.count("<p>body</p>") == page.count("p { color: red; }") == 1
