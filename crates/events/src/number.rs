//! Converts JSON numbers to BSON numbers without loss, or rejects them.

use bson::Decimal128;

/// A number in BSON.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Number {
    Int32(i32),
    Int64(i64),
    Double(f64),
    Decimal(Decimal128),
}

/// The BSON form of a JSON number, `None` if BSON has no such form.
///
/// An integer (no `.`, no `e`) becomes int32, else int64, else Decimal128 if that is exact. A real
/// becomes the nearest double. If the double is infinite, or zero for a nonzero text, the number
/// becomes Decimal128 if that is exact.
pub(crate) fn of_json(text: &str) -> Option<Number> {
    if text.contains(['.', 'e', 'E']) { real(text) } else { integer(text) }
}

fn integer(text: &str) -> Option<Number> {
    match text.parse::<i64>() {
        Ok(integer) => Some(i32::try_from(integer).map_or(Number::Int64(integer), Number::Int32)),
        Err(_) => decimal(text),
    }
}

fn real(text: &str) -> Option<Number> {
    let double: f64 = text.parse().ok()?;
    let underflow = double == 0.0 && !is_zero(text);
    if double.is_infinite() || underflow { decimal(text) } else { Some(Number::Double(double)) }
}

/// The library rejects a number that Decimal128 cannot hold exactly.
fn decimal(text: &str) -> Option<Number> {
    text.parse().ok().map(Number::Decimal)
}

fn is_zero(text: &str) -> bool {
    let mantissa = text.split(['e', 'E']).next().unwrap_or_default();
    !mantissa.contains(|digit: char| matches!(digit, '1'..='9'))
}

#[cfg(test)]
mod tests {
    use super::{Number, of_json};

    fn decimal(text: &str) -> Option<String> {
        match of_json(text) {
            Some(Number::Decimal(decimal)) => Some(decimal.to_string()),
            _ => None,
        }
    }

    #[test]
    fn integers_take_the_smallest_form_that_holds_them() {
        assert_eq!(of_json("0"), Some(Number::Int32(0)));
        assert_eq!(of_json("-0"), Some(Number::Int32(0)));
        assert_eq!(of_json("2147483647"), Some(Number::Int32(i32::MAX)));
        assert_eq!(of_json("-2147483648"), Some(Number::Int32(i32::MIN)));
        assert_eq!(of_json("2147483648"), Some(Number::Int64(2_147_483_648)));
        assert_eq!(of_json("9223372036854775807"), Some(Number::Int64(i64::MAX)));
        assert_eq!(of_json("-9223372036854775808"), Some(Number::Int64(i64::MIN)));
        assert_eq!(decimal("9223372036854775808").as_deref(), Some("9223372036854775808"));
        assert_eq!(decimal("-9223372036854775809").as_deref(), Some("-9223372036854775809"));
    }

    #[test]
    fn large_integers_are_exact_or_rejected() {
        let nines = "9".repeat(34);
        assert_eq!(decimal(&nines), Some(nines.clone()));
        assert_eq!(of_json(&format!("{nines}9")), None);
        assert_eq!(of_json(&format!("1{}1", "0".repeat(33))), None);
        assert_eq!(decimal(&format!("{nines}000")), Some(format!("9.{}E+36", "9".repeat(33))));
        assert!(decimal(&format!("1{}", "0".repeat(6144))).is_some());
        assert_eq!(of_json(&format!("1{}", "0".repeat(6145))), None);
    }

    #[test]
    fn reals_become_the_nearest_double() {
        assert_eq!(of_json("0.1"), Some(Number::Double(0.1)));
        assert_eq!(of_json("1.0"), Some(Number::Double(1.0)));
        assert_eq!(of_json("1E2"), Some(Number::Double(100.0)));
        assert_eq!(
            of_json("0.1000000000000000055511151231257827021181583404541015625"),
            Some(Number::Double(0.1))
        );
        assert_eq!(of_json("5e-324"), Some(Number::Double(5e-324)));
        assert_eq!(of_json("1.7976931348623157e308"), Some(Number::Double(f64::MAX)));
        assert_eq!(of_json("0e999999999999999999999"), Some(Number::Double(0.0)));
        let Some(Number::Double(zero)) = of_json("-0.0") else { panic!("a double") };
        assert!(zero == 0.0 && zero.is_sign_negative());
    }

    #[test]
    fn reals_outside_doubles_are_exact_decimals_or_rejected() {
        assert_eq!(decimal("1e400").as_deref(), Some("1E+400"));
        assert_eq!(decimal("-1.50e+400").as_deref(), Some("-1.50E+400"));
        assert_eq!(decimal("1e-400").as_deref(), Some("1E-400"));
        assert_eq!(decimal("1e-6176").as_deref(), Some("1E-6176"));
        assert_eq!(decimal("10e-6177").as_deref(), Some("1E-6176"));
        assert!(decimal("9.999999999999999999999999999999999e6144").is_some());
        for rejected in [
            "1e6145",
            "1e-6177",
            "11e-6177",
            "1e999999999999999999999999999999999999999999",
            "1e-99999999999",
            "1.2345678901234567890123456789012345e400",
            "-1e99999999999999999999",
        ] {
            assert_eq!(of_json(rejected), None, "{rejected}");
        }
    }
}
