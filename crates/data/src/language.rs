//! Which language a text is in, as an ISO 639-1 code (639-3 where there is no shorter one).
//!
//! A code that came with the document is trusted if it looks like one. Otherwise Hangul and kana
//! decide for Korean and Japanese, which their scripts identify better than statistics do, and
//! trigrams (whatlang) for the rest. Where those are not sure, as in a line or two, the small words
//! that every sentence has vote. Only the first `PREFIX_CHARS` characters are looked at.

use whatlang::{Lang, detect};

/// What is written where the language is not known.
pub const UNKNOWN: &str = "und";

const PREFIX_CHARS: usize = 4096;

/// Korean text quotes Latin names, Japanese has more kanji than kana: a fifth and a tenth of the letters.
const HANGUL_SHARE: f64 = 0.2;
const KANA_SHARE: f64 = 0.1;

/// Below, the runner-up (Portuguese for Spanish, say) is about as likely.
const MIN_CONFIDENCE: f64 = 0.3;

/// The code of a document: the given one if it is plausible, else a guess.
pub fn identify(given: &str, text: &str) -> String {
    match plausible_code(given) {
        Some(code) => code,
        None => guess(text).to_owned(),
    }
}

/// `ko` from `ko`, `KO`, `ko-KR` or `ko_KR`; `None` for anything that is no code.
fn plausible_code(given: &str) -> Option<String> {
    let code = given.split(['-', '_']).next().unwrap_or_default();
    let is_code = matches!(code.len(), 2 | 3) && code.bytes().all(|b| b.is_ascii_alphabetic());
    is_code.then(|| code.to_ascii_lowercase())
}

fn guess(text: &str) -> &'static str {
    let (mut letters, mut hangul, mut kana) = (0u32, 0u32, 0u32);
    let mut end = text.len();
    for (count, (at, c)) in text.char_indices().enumerate() {
        if count == PREFIX_CHARS {
            end = at;
            break;
        }
        letters += u32::from(c.is_alphabetic());
        hangul += u32::from(matches!(c, '가'..='힣' | 'ㄱ'..='ㆎ'));
        kana += u32::from(matches!(c, 'ぁ'..='ゖ' | 'ァ'..='ヺ'));
    }
    let share = |count: u32| f64::from(count) / f64::from(letters.max(1));
    if share(hangul) >= HANGUL_SHARE && hangul >= kana {
        return "ko";
    }
    if share(kana) >= KANA_SHARE {
        return "ja";
    }
    match detect(&text[..end]) {
        Some(info) if info.confidence() >= MIN_CONFIDENCE => code(info.lang()),
        Some(_) => by_small_words(&text[..end]),
        None => UNKNOWN,
    }
}

/// Frequent words of languages that are easily taken for each other; a word of several counts for all.
const SMALL_WORDS: [(&str, &str); 8] = [
    (
        "en",
        "the of and to in is are for that this with not be or on you it as from by an was if can at",
    ),
    (
        "de",
        "der die das und ist nicht den von zu mit ein eine für auf wird dem sie im des sich werden oder als auch es wenn",
    ),
    (
        "es",
        "el la los las de del que y en un una es por para con se no al su lo o como más si este esta",
    ),
    (
        "pt",
        "o a os as de do da dos das que e em um uma é por para com se não ao na no mais ou como",
    ),
    (
        "fr",
        "le la les de des du que et en un une est pour avec dans ne pas au sur ce par qui il se ou plus",
    ),
    (
        "it",
        "il la i gli le di del della che e in un una è per con non si al da come più o sono",
    ),
    (
        "nl",
        "de het een van en in is dat op te met voor niet zijn aan er of als worden wordt bij deze",
    ),
    (
        "sv",
        "och att det i en är som på för av med den till inte ett om de har kan eller vid från",
    ),
];

/// The language whose small words are the most: two at least, and half as many again as of any other.
fn by_small_words(text: &str) -> &'static str {
    let text = text.to_lowercase();
    let mut counts = [0usize; SMALL_WORDS.len()];
    for word in text.split(|c: char| !c.is_alphabetic()) {
        for (count, (_, words)) in counts.iter_mut().zip(&SMALL_WORDS) {
            *count += usize::from(!word.is_empty() && words.split(' ').any(|w| w == word));
        }
    }
    let best = (0..counts.len()).max_by_key(|&at| counts[at]).unwrap_or(0);
    let others = counts.iter().enumerate().filter(|(at, _)| *at != best);
    let second = others.map(|(_, count)| *count).max().unwrap_or(0);
    match counts[best] >= 2 && 2 * counts[best] > 3 * second {
        true => SMALL_WORDS[best].0,
        false => UNKNOWN,
    }
}

fn code(lang: Lang) -> &'static str {
    match lang {
        Lang::Eng => "en",
        Lang::Kor => "ko",
        Lang::Spa => "es",
        Lang::Deu => "de",
        Lang::Jpn => "ja",
        Lang::Vie => "vi",
        Lang::Fra => "fr",
        Lang::Ita => "it",
        Lang::Por => "pt",
        Lang::Rus => "ru",
        Lang::Ukr => "uk",
        Lang::Cmn => "zh",
        Lang::Ara => "ar",
        Lang::Hin => "hi",
        Lang::Ben => "bn",
        Lang::Tur => "tr",
        Lang::Pol => "pl",
        Lang::Nld => "nl",
        Lang::Swe => "sv",
        Lang::Dan => "da",
        Lang::Nob => "no",
        Lang::Fin => "fi",
        Lang::Ces => "cs",
        Lang::Ell => "el",
        Lang::Heb => "he",
        Lang::Hun => "hu",
        Lang::Ind => "id",
        Lang::Ron => "ro",
        Lang::Tha => "th",
        other => other.code(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_given_code_is_trusted_if_it_is_one() {
        assert_eq!(identify("ko-KR", "plain English text"), "ko");
        assert_eq!(identify("EN", "한국어"), "en");
        assert_eq!(
            identify("no such language", "등대 아래 작은 마을이 있다."),
            "ko"
        );
    }

    #[test]
    fn scripts_and_trigrams_decide() {
        for (text, expected) in [
            ("GNU 프로그램은 자유 소프트웨어 재단이 배포한다.", "ko"),
            ("この文章は日本語で書かれています。", "ja"),
            (
                "The lighthouse keeper lives at the end of the long white pier by the sea.",
                "en",
            ),
            (
                "El farero vive al final del largo muelle blanco, y todas las noches enciende la luz \
                 para los barcos que vuelven muy tarde del mar hacia el pueblo.",
                "es",
            ),
            (
                "Der Leuchtturmwärter wohnt am Ende der langen weißen Mole dicht am Meer.",
                "de",
            ),
            (
                "Người gác hải đăng sống ở cuối cầu tàu dài màu trắng bên bờ biển.",
                "vi",
            ),
            // Lines on which trigrams are not sure.
            ("Select the style that you want to use.", "en"),
            ("Wählen Sie die Datei aus, die geöffnet werden soll.", "de"),
            ("Seleccione el estilo que desea usar en la hoja.", "es"),
            ("Chọn kiểu mà bạn muốn dùng.", "vi"),
            ("사용할 스타일을 선택하십시오.", "ko"),
            ("使用するスタイルを選択します。", "ja"),
            ("Escolha o arquivo que não foi salvo na pasta.", "pt"),
            ("", "und"),
            ("12345 67", "und"),
        ] {
            assert_eq!(identify("", text), expected, "{text}");
        }
    }
}
