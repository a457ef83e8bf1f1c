//! The configuration of the export of traces, from the standard variables of OpenTelemetry.

use service::{ConfigReader, parse};
use url::Url;

use crate::config::settings::Settings;

/// The export of traces.
#[derive(Debug, Clone, PartialEq)]
pub struct TraceExport {
    /// The URL of the collector, without `/v1/traces`.
    pub endpoint: Url,
    pub service_name: String,
    pub sampling: Sampling,
}

/// Which traces are exported.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sampling {
    /// Whether the `traceparent` of a request decides, if it has one.
    pub parent_based: bool,
    /// The share of the other traces, from 0 to 1.
    pub ratio: f64,
}

impl TraceExport {
    /// Parses the variables. `Some(None)` means that no traces are exported.
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

/// Parses the sampler: whether the parent decides, and the share of the other traces. The share is
/// `None` if OTEL_TRACES_SAMPLER_ARG defines it.
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
            Err("is not always_on, always_off or traceidratio, with or without the prefix parentbased_"
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

    fn read(pairs: &[(&str, &str)]) -> Result<Option<TraceExport>, String> {
        let pairs = pairs.iter().chain(&[("KAFKA_BROKER", "k:9092")]);
        let pairs = pairs.map(|(name, value)| ((*name).into(), (*value).into()));
        Config::from_environment(pairs).map(|config| config.traces).map_err(|faults| faults.to_string())
    }

    #[test]
    fn no_trace_is_exported_without_an_endpoint() {
        assert_eq!(read(&[("OTEL_TRACES_SAMPLER", "always_on")]), Ok(None));
    }

    #[test]
    fn the_standard_samplers_are_supported() {
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
    fn the_error_names_every_wrong_variable() {
        let error = read(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318"),
            ("OTEL_TRACES_SAMPLER", "xray"),
            ("OTEL_TRACES_SAMPLER_ARG", "1.5"),
        ]);
        let error = error.unwrap_err();
        for name in ["OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_TRACES_SAMPLER:", "OTEL_TRACES_SAMPLER_ARG"] {
            assert!(error.contains(name), "{name} in {error}");
        }
    }
}
