//! Finds numbers of payment cards: 13 to 19 digits with a card's first digits and a valid check digit (ISO/IEC 7812-1,
//! the Luhn algorithm), also when spaces or hyphens stand between groups of them.

use std::ops::Range;

const DIGITS: std::ops::RangeInclusive<usize> = 13..=19;

/// A run of digits without anything in between.
type Run = Range<usize>;

/// The places of all card numbers in `text`, in order, without overlaps.
pub(super) fn find(text: &[u8]) -> Vec<Range<usize>> {
    let mut found = Vec::new();
    let mut groups: Vec<Run> = Vec::new();
    let mut at = 0;
    while at < text.len() {
        if !text[at].is_ascii_digit() {
            at += 1;
            continue;
        }
        let end = text[at..].iter().position(|byte| !byte.is_ascii_digit()).map_or(text.len(), |length| at + length);
        let is_next = groups.last().is_some_and(|last| last.end + 1 == at && matches!(text[last.end], b' ' | b'-'));
        if !is_next {
            search(text, &groups, &mut found);
            groups.clear();
        }
        groups.push(at..end);
        at = end;
    }
    search(text, &groups, &mut found);
    found
}

/// Looks through runs that follow each other with one separator in between: any of them that are neighbours may be one
/// number, since another number may stand beside it.
fn search(text: &[u8], groups: &[Run], found: &mut Vec<Range<usize>>) {
    let mut first = 0;
    while first < groups.len() {
        let mut digits = 0;
        let mut longest = None;
        for (index, group) in groups.iter().enumerate().skip(first) {
            digits += group.len();
            if digits > *DIGITS.end() {
                break;
            }
            if digits >= *DIGITS.start() && is_card(&groups[first..=index], text) {
                longest = Some(index);
            }
        }
        match longest {
            Some(last) => {
                found.push(groups[first].start..groups[last].end);
                first = last + 1;
            }
            None => first += 1,
        }
    }
}

fn is_card(groups: &[Run], text: &[u8]) -> bool {
    let digits = || groups.iter().flat_map(|group| &text[group.clone()]).map(|byte| u32::from(byte - b'0'));
    let count = digits().count();
    let prefix = digits().take(4).fold(0, |number, digit| number * 10 + digit);
    // Visa, Mastercard, American Express, Diners, JCB, Discover, UnionPay, Maestro; Mastercard's newer range has 16.
    let is_issued = (3000..7000).contains(&prefix) || (count == 16 && (2221..=2720).contains(&prefix));
    is_issued && has_check_digit(&digits().collect::<Vec<_>>())
}

fn has_check_digit(digits: &[u32]) -> bool {
    let sum: u32 = digits
        .iter()
        .rev()
        .enumerate()
        .map(|(index, digit)| match (index % 2, digit * 2) {
            (0, _) => *digit,
            (_, double) if double > 9 => double - 9,
            (_, double) => double,
        })
        .sum();
    sum.is_multiple_of(10)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn found(text: &str) -> Vec<&str> {
        find(text.as_bytes()).into_iter().map(|place| &text[place]).collect()
    }

    #[test]
    fn numbers_of_all_issuers_are_found() {
        // The issuers' own numbers for tests.
        for card in [
            "4111111111111111",
            "4222222222222",
            "5555555555554444",
            "2223003122003222",
            "378282246310005",
            "30569309025904",
            "3530111333300000",
            "6011111111111117",
            "6304000000000000",
            "4111 1111 1111 1111",
            "3782-822463-10005",
        ] {
            assert_eq!(found(card), [card]);
            assert_eq!(found(&format!("pan={card};x")), [card]);
        }
    }

    #[test]
    fn a_number_beside_others_is_found() {
        assert_eq!(found("12 4111111111111111"), ["4111111111111111"]);
        assert_eq!(found("4111-1111-1111-1111 737 12/27"), ["4111-1111-1111-1111"]);
        assert_eq!(found("a4111111111111111,5555555555554444"), ["4111111111111111", "5555555555554444"]);
    }

    #[test]
    fn other_numbers_are_left_alone() {
        for text in
            ["4111111111111112", "1795237200000", "1795237200000000000", "41111111111111111111", "4111  1111", ""]
        {
            assert_eq!(found(text), [""; 0], "{text}");
        }
    }

    proptest! {
        /// A number with its right check digit is found wherever it stands, also beside other digits.
        #[test]
        fn every_valid_number_is_found(
            before in "[a-z ]{0,8}([0-9]{1,3}[ -])?", digits in "[3-6][0-9]{11,17}", after in "([ -][0-9]{1,3})?[a-z ]{0,8}",
        ) {
            let check = (0..10).map(|digit| format!("{digits}{digit}")).find(|number| {
                has_check_digit(&number.bytes().map(|byte| u32::from(byte - b'0')).collect::<Vec<_>>())
            });
            let card = check.expect("one of ten");
            let text = format!("{before}{card}{after}");
            let start = before.len();
            let covers = |place: &Range<usize>| place.start <= start && place.end >= start + card.len();
            prop_assert!(
                find(text.as_bytes()).iter().any(covers),
                "{text}"
            );
        }
    }
}
