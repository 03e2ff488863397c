//! Line and bar plots as SVG text, written by hand so that two runs give the same bytes.

/// How a series is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mark {
    /// A line through the points.
    Line,
    /// A dashed line: what the paper or its model says.
    Dashed,
    /// Bars side by side.
    Bar,
}

/// Named points.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Its name in the key.
    pub name: String,
    /// How it is drawn.
    pub mark: Mark,
    /// Points, x rising.
    pub points: Vec<(f64, f64)>,
}

impl Series {
    /// A series.
    pub fn new(name: impl Into<String>, mark: Mark, points: Vec<(f64, f64)>) -> Self {
        Self { name: name.into(), mark, points }
    }
}

/// A plot.
#[derive(Clone, Debug, PartialEq)]
pub struct Plot {
    /// File name without ending, such as "p2-e2-figure5".
    pub name: String,
    /// Heading.
    pub title: String,
    /// Name and unit of the x axis.
    pub x: String,
    /// Name and unit of the y axis.
    pub y: String,
    /// What is drawn.
    pub series: Vec<Series>,
}

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 170.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 50.0;
const COLOURS: [&str; 8] =
    ["#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf", "#8c564b", "#7f7f7f"];

/// A round step that gives about five ticks up to `most`.
fn tick_step(most: f64) -> f64 {
    let rough = (most / 5.0).max(1e-9);
    let power = 10f64.powf(rough.log10().floor());
    let unit = rough / power;
    let round = [1.0, 2.0, 5.0, 10.0].into_iter().find(|step| unit <= *step).unwrap_or(10.0);
    round * power
}

fn number(value: f64) -> String {
    if value.abs() >= 10.0 || value == value.round() {
        format!("{value:.0}")
    } else {
        format!("{value:.2}")
    }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

impl Plot {
    /// The plot as an SVG document.
    pub fn svg(&self) -> String {
        let points = || self.series.iter().flat_map(|s| s.points.iter());
        let (x_least, x_most) = points()
            .fold((f64::MAX, f64::MIN), |(least, most), (x, _)| (least.min(*x), most.max(*x)));
        let y_most = points().fold(0.0f64, |most, (_, y)| most.max(*y)) * 1.05;
        let y_most = if y_most > 0.0 { y_most } else { 1.0 };
        let bars = self.series.iter().filter(|s| s.mark == Mark::Bar).count();
        let margin = if bars > 0 { 0.5 } else { 0.0 };
        let (x_least, x_most) = if x_most > x_least || bars > 0 {
            (x_least - margin, x_most + margin)
        } else {
            (0.0, 1.0)
        };
        let x_at = |x: f64| LEFT + (x - x_least) / (x_most - x_least) * (WIDTH - LEFT - RIGHT);
        let y_at = |y: f64| HEIGHT - BOTTOM - y / y_most * (HEIGHT - TOP - BOTTOM);
        let mut svg = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{HEIGHT}\" font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<text x=\"{LEFT}\" y=\"22\" font-size=\"15\">{}</text>\n",
            escape(&self.title)
        );
        self.axes(&mut svg, (x_least, x_most), y_most, &x_at, &y_at);
        let width = 0.8 / bars.max(1) as f64;
        let mut bar = 0;
        for (index, series) in self.series.iter().enumerate() {
            let colour = COLOURS[index % COLOURS.len()];
            match series.mark {
                Mark::Bar => {
                    for (x, y) in &series.points {
                        let left = x_at(x - 0.4 + width * f64::from(bar));
                        let right = x_at(x - 0.4 + width * f64::from(bar + 1));
                        svg.push_str(&format!(
                            "<rect x=\"{left:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" fill=\"{colour}\"/>\n",
                            y_at(*y),
                            right - left,
                            y_at(0.0) - y_at(*y),
                        ));
                    }
                    bar += 1;
                }
                Mark::Line | Mark::Dashed => {
                    let dash =
                        if series.mark == Mark::Dashed { " stroke-dasharray=\"6 4\"" } else { "" };
                    let path: Vec<String> = series
                        .points
                        .iter()
                        .map(|(x, y)| format!("{:.1},{:.1}", x_at(*x), y_at(*y)))
                        .collect();
                    svg.push_str(&format!(
                        "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.8\"{dash} points=\"{}\"/>\n",
                        path.join(" ")
                    ));
                }
            }
            let y = TOP + 18.0 * index as f64;
            let x = WIDTH - RIGHT + 12.0;
            svg.push_str(&format!(
                "<rect x=\"{x}\" y=\"{:.1}\" width=\"14\" height=\"4\" fill=\"{colour}\"/>\n<text x=\"{}\" y=\"{:.1}\">{}</text>\n",
                y - 4.0,
                x + 20.0,
                y + 2.0,
                escape(&series.name)
            ));
        }
        svg.push_str("</svg>\n");
        svg
    }

    fn axes(
        &self,
        svg: &mut String,
        (x_least, x_most): (f64, f64),
        y_most: f64,
        x_at: &impl Fn(f64) -> f64,
        y_at: &impl Fn(f64) -> f64,
    ) {
        let (bottom, right) = (HEIGHT - BOTTOM, WIDTH - RIGHT);
        svg.push_str(&format!(
            "<path d=\"M{LEFT} {TOP}V{bottom}H{right}\" fill=\"none\" stroke=\"black\"/>\n"
        ));
        let step = tick_step(y_most);
        let mut y = 0.0;
        while y <= y_most {
            svg.push_str(&format!(
                "<path d=\"M{LEFT} {:.1}H{right}\" stroke=\"#dddddd\"/>\n<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\n",
                y_at(y),
                LEFT - 6.0,
                y_at(y) + 4.0,
                number(y)
            ));
            y += step;
        }
        let step = tick_step(x_most - x_least).max(f64::from(u8::from(self.has_bars())));
        let mut x = (x_least / step).ceil() * step;
        while x <= x_most {
            svg.push_str(&format!(
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\n",
                x_at(x),
                bottom + 16.0,
                number(x)
            ));
            x += step;
        }
        svg.push_str(&format!(
            "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>\n<text x=\"16\" y=\"{:.1}\" transform=\"rotate(-90 16 {:.1})\" text-anchor=\"middle\">{}</text>\n",
            (LEFT + right) / 2.0,
            HEIGHT - 12.0,
            escape(&self.x),
            (TOP + bottom) / 2.0,
            (TOP + bottom) / 2.0,
            escape(&self.y)
        ));
    }

    fn has_bars(&self) -> bool {
        self.series.iter().any(|s| s.mark == Mark::Bar)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plot_is_well_formed_and_repeatable() {
        let plot = Plot {
            name: "x".into(),
            title: "a < b".into(),
            x: "s".into(),
            y: "IOPS".into(),
            series: vec![
                Series::new("one", Mark::Line, vec![(0.0, 1.0), (10.0, 1600.0)]),
                Series::new("two", Mark::Bar, vec![(1.0, 5.0)]),
            ],
        };
        let svg = plot.svg();
        assert_eq!(svg, plot.svg());
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>\n"));
        assert!(svg.contains("a &lt; b") && !svg.contains("NaN") && !svg.contains("inf"));
    }
}
