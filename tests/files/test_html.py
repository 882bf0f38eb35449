from __future__ import annotations

from trtcal.files.html import HTML_MARK, document, table


def test_a_title_is_text_and_the_page_may_load_and_run_nothing() -> None:
    page = document("<script>alert(1)</script>", "<p>body</p>\n", "p { color: red; }\n")
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "default-src 'none'" in page
    assert HTML_MARK in page
    assert page.count("<p>body</p>") == page.count("p { color: red; }") == 1


def test_the_cells_of_a_table_are_text() -> None:
    markup = table(["<Layer>", "dB"], [["conv<1>", "3 & 4"], ["fc", "5"]])
    assert markup.count("<tr>") == 3
    assert "<th scope=col>&lt;Layer&gt;" in markup
    assert "<th scope=row>conv&lt;1&gt;<td>3 &amp; 4" in markup
