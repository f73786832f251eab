"""How the pages look in a browser: on a phone, and for readers who use the keyboard."""

from __future__ import annotations

from browsing import opened


def test_table_of_weeks_fits_a_phone(browser, url):
    """No column is cut off: each week's measured mean and its error are on the screen."""
    with opened(browser, f"{url}/comparison?from=2016-12-01&to=2016-12-31", width=390) as page:
        table = page.locator(".scroll:has(.weeks)").first
        table.wait_for()
        assert table.evaluate("frame => frame.scrollWidth <= frame.clientWidth")
        assert table.locator("tbody tr").first.inner_text().count("%") == 2


def test_date_fields_show_the_focus(browser, url):
    """Readers who use the keyboard see a ring around the field, as around each button."""
    with opened(browser, url) as page:
        for name in ("#first-day", "#zone", "#earlier"):
            page.locator(name).focus()
            page.keyboard.press("Shift")
            style = page.locator(name).evaluate(
                "field => [getComputedStyle(field).outlineStyle, getComputedStyle(field).outlineWidth]"
            )
            assert style == ["solid", "3px"], name
