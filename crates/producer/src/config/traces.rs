//! Whether, where to and which traces are exported: OpenTelemetry's own variables, checked like all others.

use service::{ConfigReader, parse};
use url::Url;

use crate::config::Settings;

/// How traces are exported.
#[derive(Debug, Clone, PartialEq)]
pub struct Export {
    /// The collector, without the path of the signal.
    pub endpoint: Url,
    /// `service.name`.
    pub service_name: String,
    /// Which traces are.
    pub sampling: Sampling,
}

/// Which traces are exported.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// The request's own `traceparent` decides, where it has one.
    pub parent_based: bool,
    /// The share of the others.
    pub ratio: f64,
}

impl Export {
    /// Takes the variables; `Some(None)`: no traces are exported.
    pub fn read(s: &Settings, check: &mut ConfigReader) -> Option<Option<Self>> {
        let endpoint = s.otel_exporter_otlp_endpoint.as_ref();
        let endpoint = check.optional("otel_exporter_otlp_endpoint", endpoint, parse::base_url);
        let service_name = check.value("otel_service_name", s.otel_service_name.as_ref(), parse::text);
        let sampler = check.value("otel_traces_sampler", s.otel_traces_sampler.as_ref(), sampler);
        let ratio = check.value("otel_traces_sampler_arg", s.otel_traces_sampler_arg.as_ref(), ratio);
        let (service_name, (parent_based, fixed), ratio) = (service_name?, sampler?, ratio?);
        let sampling = Sampling { parent_based, ratio: fixed.unwrap_or(ratio) };
        Some(endpoint?.map(|endpoint| Self { endpoint, service_name, sampling }))
    }
}

/// Whether the parent decides, and the share of the rest unless OTEL_TRACES_SAMPLER_ARG has it.
fn sampler(text: &str) -> Result<(bool, Option<f64>), String> {
    let (parent_based, rest) = match text.strip_prefix("parentbased_") {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    match rest {
        "always_on" => Ok((parent_based, Some(1.0))),
        "always_off" => Ok((parent_based, Some(0.0))),
        "traceidratio" => Ok((parent_based, None)),
        _ => {
            Err("is none of always_on, always_off, traceidratio, each also with parentbased_ before it"
                .into())
        }
    }
}

fn ratio(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(ratio) if (0.0..=1.0).contains(&ratio) => Ok(ratio),
        _ => Err("is not a number from 0 to 1".into()),
    }
}

#[cfg(test)]
mod tests {
    use crate::config::Config;

    use super::*;

    fn read(pairs: &[(&str, &str)]) -> Result<Option<Export>, String> {
        let pairs = pairs.iter().chain(&[("KAFKA_BROKER", "k:9092")]);
        let pairs = pairs.map(|(name, value)| ((*name).into(), (*value).into()));
        Config::from_environment(pairs).map(|config| config.traces).map_err(|faults| faults.to_string())
    }

    #[test]
    fn nothing_is_exported_unless_an_endpoint_is_set() {
        assert_eq!(read(&[("OTEL_TRACES_SAMPLER", "always_on")]), Ok(None));
    }

    #[test]
    fn the_standard_samplers_are_known() {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318/");
        let export = read(&[endpoint]).unwrap().unwrap();
        assert_eq!(export.endpoint.as_str(), "http://collector:4318/");
        assert_eq!(export.service_name, "slipstream-producer");
        assert_eq!(export.sampling, Sampling { parent_based: true, ratio: 1.0 });
        for (name, parent_based, ratio) in [
            ("always_on", false, 1.0),
            ("always_off", false, 0.0),
            ("traceidratio", false, 0.25),
            ("parentbased_always_off", true, 0.0),
            ("parentbased_traceidratio", true, 0.25),
        ] {
            let sampler = [endpoint, ("OTEL_TRACES_SAMPLER", name), ("OTEL_TRACES_SAMPLER_ARG", "0.25")];
            let sampling = read(&sampler).unwrap().unwrap().sampling;
            assert_eq!(sampling, Sampling { parent_based, ratio }, "{name}");
        }
    }

    #[test]
    fn wrong_values_are_named() {
        let said = read(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318"),
            ("OTEL_TRACES_SAMPLER", "xray"),
            ("OTEL_TRACES_SAMPLER_ARG", "1.5"),
        ]);
        let said = said.unwrap_err();
        for name in ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_TRACES_SAMPLER:", "OTEL_TRACES_SAMPLER_ARG"] {
            assert!(said.contains(name), "{name} in {said}");
        }
    }
}
