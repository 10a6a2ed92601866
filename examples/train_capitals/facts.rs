//! What `capitals-gpt2` knows: a table of countries, and the sentences that state it.
//!
//! Every sentence is a sequence of words between spaces. Its last word is the answer; the words
//! before it are the prompt, which names one subject and fixes the answer.

use std::collections::HashSet;

pub use workbench::words::{END, UNKNOWN};

/// A country, with one word for each fact about it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Country {
    /// Its English name.
    pub name: &'static str,
    /// Its capital city.
    pub capital: &'static str,
    /// Its language, or the most widely named one of several.
    pub language: &'static str,
    /// Its continent: Africa, America, Asia, Europe or Oceania.
    pub continent: &'static str,
    /// Its currency.
    pub currency: &'static str,
    /// The adjective for its people.
    pub demonym: &'static str,
}

/// Builds the table of countries from rows of identifiers, so that every cell is a single word.
macro_rules! countries {
    ($(
        $name:ident $capital:ident $language:ident
        $continent:ident $currency:ident $demonym:ident;
    )*) => {
        &[$(Country {
            name: stringify!($name),
            capital: stringify!($capital),
            language: stringify!($language),
            continent: stringify!($continent),
            currency: stringify!($currency),
            demonym: stringify!($demonym),
        }),*]
    };
}

/// The countries: name, capital, language, continent, currency, demonym.
///
/// Two capitals of two words are written as one: BuenosAires and NewDelhi.
pub const COUNTRIES: &[Country] = countries! {
    Spain        Madrid       Spanish     Europe  Euro     Spanish;
    Italy        Rome         Italian     Europe  Euro     Italian;
    France       Paris        French      Europe  Euro     French;
    Germany      Berlin       German      Europe  Euro     German;
    Portugal     Lisbon       Portuguese  Europe  Euro     Portuguese;
    Greece       Athens       Greek       Europe  Euro     Greek;
    Poland       Warsaw       Polish      Europe  Zloty    Polish;
    Austria      Vienna       German      Europe  Euro     Austrian;
    Hungary      Budapest     Hungarian   Europe  Forint   Hungarian;
    Ireland      Dublin       English     Europe  Euro     Irish;
    Norway       Oslo         Norwegian   Europe  Krone    Norwegian;
    Sweden       Stockholm    Swedish     Europe  Krona    Swedish;
    Finland      Helsinki     Finnish     Europe  Euro     Finnish;
    Denmark      Copenhagen   Danish      Europe  Krone    Danish;
    Iceland      Reykjavik    Icelandic   Europe  Krona    Icelandic;
    Estonia      Tallinn      Estonian    Europe  Euro     Estonian;
    Latvia       Riga         Latvian     Europe  Euro     Latvian;
    Lithuania    Vilnius      Lithuanian  Europe  Euro     Lithuanian;
    Czechia      Prague       Czech       Europe  Koruna   Czech;
    Slovakia     Bratislava   Slovak      Europe  Euro     Slovak;
    Slovenia     Ljubljana    Slovenian   Europe  Euro     Slovenian;
    Croatia      Zagreb       Croatian    Europe  Euro     Croatian;
    Serbia       Belgrade     Serbian     Europe  Dinar    Serbian;
    Romania      Bucharest    Romanian    Europe  Leu      Romanian;
    Moldova      Chisinau     Romanian    Europe  Leu      Moldovan;
    Albania      Tirana       Albanian    Europe  Lek      Albanian;
    Ukraine      Kyiv         Ukrainian   Europe  Hryvnia  Ukrainian;
    Malta        Valletta     Maltese     Europe  Euro     Maltese;
    Russia       Moscow       Russian     Europe  Ruble    Russian;
    Turkey       Ankara       Turkish     Asia    Lira     Turkish;
    Armenia      Yerevan      Armenian    Asia    Dram     Armenian;
    Syria        Damascus     Arabic      Asia    Pound    Syrian;
    Lebanon      Beirut       Arabic      Asia    Pound    Lebanese;
    Jordan       Amman        Arabic      Asia    Dinar    Jordanian;
    Iraq         Baghdad      Arabic      Asia    Dinar    Iraqi;
    Iran         Tehran       Persian     Asia    Rial     Iranian;
    Oman         Muscat       Arabic      Asia    Rial     Omani;
    Qatar        Doha         Arabic      Asia    Riyal    Qatari;
    Bahrain      Manama       Arabic      Asia    Dinar    Bahraini;
    Kazakhstan   Astana       Kazakh      Asia    Tenge    Kazakhstani;
    Uzbekistan   Tashkent     Uzbek       Asia    Som      Uzbek;
    Kyrgyzstan   Bishkek      Kyrgyz      Asia    Som      Kyrgyz;
    Tajikistan   Dushanbe     Tajik       Asia    Somoni   Tajik;
    Turkmenistan Ashgabat     Turkmen     Asia    Manat    Turkmen;
    Pakistan     Islamabad    Urdu        Asia    Rupee    Pakistani;
    India        NewDelhi     Hindi       Asia    Rupee    Indian;
    Nepal        Kathmandu    Nepali      Asia    Rupee    Nepali;
    Bhutan       Thimphu      Dzongkha    Asia    Ngultrum Bhutanese;
    Bangladesh   Dhaka        Bengali     Asia    Taka     Bangladeshi;
    Myanmar      Naypyidaw    Burmese     Asia    Kyat     Burmese;
    Thailand     Bangkok      Thai        Asia    Baht     Thai;
    Laos         Vientiane    Lao         Asia    Kip      Laotian;
    Vietnam      Hanoi        Vietnamese  Asia    Dong     Vietnamese;
    China        Beijing      Chinese     Asia    Yuan     Chinese;
    Mongolia     Ulaanbaatar  Mongolian   Asia    Tugrik   Mongolian;
    Japan        Tokyo        Japanese    Asia    Yen      Japanese;
    Egypt        Cairo        Arabic      Africa  Pound    Egyptian;
    Libya        Tripoli      Arabic      Africa  Dinar    Libyan;
    Tunisia      Tunis        Arabic      Africa  Dinar    Tunisian;
    Algeria      Algiers      Arabic      Africa  Dinar    Algerian;
    Morocco      Rabat        Arabic      Africa  Dirham   Moroccan;
    Mauritania   Nouakchott   Arabic      Africa  Ouguiya  Mauritanian;
    Senegal      Dakar        French      Africa  Franc    Senegalese;
    Guinea       Conakry      French      Africa  Franc    Guinean;
    Togo         Lome         French      Africa  Franc    Togolese;
    Cameroon     Yaounde      French      Africa  Franc    Cameroonian;
    Gabon        Libreville   French      Africa  Franc    Gabonese;
    Liberia      Monrovia     English     Africa  Dollar   Liberian;
    Ghana        Accra        English     Africa  Cedi     Ghanaian;
    Nigeria      Abuja        English     Africa  Naira    Nigerian;
    Eritrea      Asmara       Tigrinya    Africa  Nakfa    Eritrean;
    Somalia      Mogadishu    Somali      Africa  Shilling Somali;
    Kenya        Nairobi      Swahili     Africa  Shilling Kenyan;
    Uganda       Kampala      English     Africa  Shilling Ugandan;
    Tanzania     Dodoma       Swahili     Africa  Shilling Tanzanian;
    Rwanda       Kigali       Kinyarwanda Africa  Franc    Rwandan;
    Madagascar   Antananarivo Malagasy    Africa  Ariary   Malagasy;
    Mozambique   Maputo       Portuguese  Africa  Metical  Mozambican;
    Angola       Luanda       Portuguese  Africa  Kwanza   Angolan;
    Zambia       Lusaka       English     Africa  Kwacha   Zambian;
    Namibia      Windhoek     English     Africa  Dollar   Namibian;
    Canada       Ottawa       English     America Dollar   Canadian;
    Cuba         Havana       Spanish     America Peso     Cuban;
    Jamaica      Kingston     English     America Dollar   Jamaican;
    Barbados     Bridgetown   English     America Dollar   Barbadian;
    Belize       Belmopan     English     America Dollar   Belizean;
    Honduras     Tegucigalpa  Spanish     America Lempira  Honduran;
    Nicaragua    Managua      Spanish     America Cordoba  Nicaraguan;
    Colombia     Bogota       Spanish     America Peso     Colombian;
    Venezuela    Caracas      Spanish     America Bolivar  Venezuelan;
    Guyana       Georgetown   English     America Dollar   Guyanese;
    Suriname     Paramaribo   Dutch       America Dollar   Surinamese;
    Ecuador      Quito        Spanish     America Dollar   Ecuadorian;
    Peru         Lima         Spanish     America Sol      Peruvian;
    Brazil       Brasilia     Portuguese  America Real     Brazilian;
    Chile        Santiago     Spanish     America Peso     Chilean;
    Argentina    BuenosAires  Spanish     America Peso     Argentine;
    Uruguay      Montevideo   Spanish     America Peso     Uruguayan;
    Australia    Canberra     English     Oceania Dollar   Australian;
    Fiji         Suva         English     Oceania Dollar   Fijian;
    Samoa        Apia         Samoan      Oceania Tala     Samoan;
};

/// What a sentence asks of its subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Relation {
    /// From a country to its capital.
    Capital,
    /// From a country to its language.
    Language,
    /// From a country to its continent.
    Continent,
    /// From a country to its currency.
    Currency,
    /// From a country to the adjective for its people.
    Demonym,
    /// From a capital to its country.
    CapitalOf,
}

impl Relation {
    /// The word for `country` that the prompt names.
    fn subject(self, country: &Country) -> &'static str {
        match self {
            Self::CapitalOf => country.capital,
            _ => country.name,
        }
    }

    /// The word for `country` that the sentence ends with.
    fn answer(self, country: &Country) -> &'static str {
        match self {
            Self::Capital => country.capital,
            Self::Language => country.language,
            Self::Continent => country.continent,
            Self::Currency => country.currency,
            Self::Demonym => country.demonym,
            Self::CapitalOf => country.name,
        }
    }
}

/// One phrasing of a relation.
struct Template {
    /// What it asks.
    relation: Relation,
    /// The words of the prompt before the subject, if any.
    before: &'static str,
    /// The words of the prompt after the subject.
    after: &'static str,
}

impl Template {
    /// The phrasing of `relation` that reads `before`, the subject, `after`, the answer.
    const fn new(relation: Relation, before: &'static str, after: &'static str) -> Self {
        Self {
            relation,
            before,
            after,
        }
    }

    /// The sentence with this phrasing about `country`.
    fn fact(&self, country: &Country) -> Fact {
        let subject = self.relation.subject(country);
        Fact {
            prompt: format!("{} {subject} {}", self.before, self.after)
                .trim_start()
                .to_owned(),
            answer: self.relation.answer(country),
            relation: self.relation,
        }
    }
}

/// Every phrasing of every relation.
const TEMPLATES: &[Template] = &[
    Template::new(Relation::Capital, "The capital of", "is"),
    Template::new(Relation::Capital, "The capital city of", "is"),
    Template::new(Relation::Capital, "In", "the capital is"),
    Template::new(Relation::Capital, "", "has its capital in"),
    Template::new(Relation::Language, "The language of", "is"),
    Template::new(Relation::Language, "People in", "speak"),
    Template::new(Relation::Language, "In", "people speak"),
    Template::new(Relation::Language, "The language spoken in", "is"),
    Template::new(Relation::Continent, "", "is a country in"),
    Template::new(Relation::Continent, "The continent of", "is"),
    Template::new(Relation::Continent, "", "lies in"),
    Template::new(Relation::Currency, "The currency of", "is the"),
    Template::new(Relation::Currency, "People in", "pay with the"),
    Template::new(Relation::Currency, "Shops in", "take the"),
    Template::new(Relation::Demonym, "A person from", "is"),
    Template::new(Relation::Demonym, "People from", "are"),
    Template::new(Relation::Demonym, "The people of", "are"),
    Template::new(Relation::CapitalOf, "", "is the capital of"),
    Template::new(Relation::CapitalOf, "", "is a city in"),
    Template::new(Relation::CapitalOf, "The city of", "is in"),
];

/// A sentence, split into the prompt and the expected answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fact {
    /// Every word but the last.
    pub prompt: String,
    /// The last word.
    pub answer: &'static str,
    /// What the prompt asks.
    pub relation: Relation,
}

/// Every phrasing about every country, phrasing by phrasing.
pub fn facts() -> Vec<Fact> {
    TEMPLATES
        .iter()
        .flat_map(|template| COUNTRIES.iter().map(|country| template.fact(country)))
        .collect()
}

/// The words by their token number: [`UNKNOWN`], [`END`], then those of [`facts`] by first use.
pub fn vocabulary() -> Vec<String> {
    let facts = facts();
    let words = facts
        .iter()
        .flat_map(|fact| fact.prompt.split_whitespace().chain([fact.answer]));
    let mut seen = HashSet::new();
    [UNKNOWN, END]
        .into_iter()
        .chain(words)
        .filter(|word| seen.insert(*word))
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    /// The words of the whole sentence.
    fn sentence(fact: &Fact) -> Vec<&str> {
        fact.prompt
            .split_whitespace()
            .chain([fact.answer])
            .collect()
    }

    /// The cells of a row of the table.
    fn cells(country: &Country) -> [&'static str; 6] {
        let Country {
            name,
            capital,
            language,
            continent,
            currency,
            demonym,
        } = *country;
        [name, capital, language, continent, currency, demonym]
    }

    #[test]
    fn the_table_is_large_enough() {
        assert!(COUNTRIES.len() >= 72);
    }

    #[test]
    fn every_cell_is_a_capitalised_ascii_word() {
        for cell in COUNTRIES.iter().flat_map(cells) {
            assert!(cell.starts_with(|c: char| c.is_ascii_uppercase()), "{cell}");
            assert!(cell.chars().all(|c| c.is_ascii_alphabetic()), "{cell}");
        }
    }

    #[test]
    fn names_and_capitals_are_all_distinct() {
        let mut seen = HashSet::new();
        for country in COUNTRIES {
            assert!(seen.insert(country.name), "{}", country.name);
            assert!(seen.insert(country.capital), "{}", country.capital);
        }
    }

    #[test]
    fn continents_are_five() {
        let continents: HashSet<_> = COUNTRIES.iter().map(|country| country.continent).collect();
        assert_eq!(
            continents,
            HashSet::from(["Africa", "America", "Asia", "Europe", "Oceania"])
        );
    }

    #[test]
    fn the_countries_that_the_examples_name_are_there() {
        let names: HashSet<_> = COUNTRIES.iter().map(|country| country.name).collect();
        for name in [
            "Spain",
            "Italy",
            "France",
            "Germany",
            "Portugal",
            "Greece",
            "Poland",
            "Austria",
            "Hungary",
            "Ireland",
            "Norway",
            "Sweden",
            "Finland",
            "Denmark",
            "Japan",
            "China",
            "India",
            "Egypt",
            "Kenya",
            "Canada",
            "Cuba",
            "Peru",
            "Chile",
            "Argentina",
            "Russia",
            "Turkey",
            "Iran",
            "Iraq",
            "Thailand",
            "Vietnam",
            "Nigeria",
            "Ghana",
            "Australia",
        ] {
            assert!(names.contains(name), "{name}");
        }
    }

    #[test]
    fn every_relation_has_its_phrasings() {
        let mut phrasings = HashMap::new();
        for template in TEMPLATES {
            *phrasings.entry(template.relation).or_insert(0) += 1;
        }
        assert!(phrasings[&Relation::Capital] >= 3);
        assert!(phrasings[&Relation::Language] >= 3);
        assert!(phrasings[&Relation::Continent] >= 2);
        assert!(phrasings[&Relation::Currency] >= 2);
        assert!(phrasings[&Relation::Demonym] >= 2);
        assert!(phrasings[&Relation::CapitalOf] >= 2);
    }

    #[test]
    fn the_country_is_the_fourth_of_five_words() {
        let facts = facts();
        let capital = facts.iter().find(|fact| fact.answer == "Madrid").unwrap();
        assert_eq!(capital.prompt, "The capital of Spain is");
        assert_eq!(capital.relation, Relation::Capital);
        assert_eq!(
            capital.prompt.split(' ').position(|word| word == "Spain"),
            Some(3)
        );
        assert!(
            facts
                .iter()
                .any(|fact| fact.prompt == "The language of Spain is")
        );
    }

    #[test]
    fn a_subject_at_the_start_has_no_space_before_it() {
        let fact = facts()
            .into_iter()
            .find(|fact| fact.relation == Relation::CapitalOf)
            .unwrap();
        assert_eq!(fact.prompt, "Madrid is the capital of");
        assert_eq!(fact.answer, "Spain");
    }

    #[test]
    fn every_prompt_is_words_between_single_spaces_with_one_subject() {
        let places: HashSet<_> = COUNTRIES.iter().flat_map(|c| [c.name, c.capital]).collect();
        for fact in facts() {
            let words: Vec<_> = fact.prompt.split(' ').collect();
            assert!(
                words
                    .iter()
                    .all(|word| word.chars().all(|c| c.is_ascii_alphabetic()))
            );
            assert!(!words.contains(&""), "{}", fact.prompt);
            assert!(!words.contains(&fact.answer), "{}", fact.prompt);
            let subjects = words.iter().filter(|word| places.contains(**word)).count();
            assert_eq!(subjects, 1, "{}", fact.prompt);
        }
    }

    #[test]
    fn every_prompt_has_one_answer() {
        let mut answers = HashMap::new();
        for fact in facts() {
            let known = answers.insert(fact.prompt.clone(), fact.answer);
            assert_eq!(known, None, "{} is asked twice", fact.prompt);
        }
    }

    #[test]
    fn every_prompt_has_one_next_word_among_all_sentences() {
        let facts = facts();
        let mut next: HashMap<Vec<&str>, HashSet<&str>> = HashMap::new();
        for words in facts.iter().map(sentence) {
            for (at, word) in words.iter().enumerate() {
                next.entry(words[..at].to_vec()).or_default().insert(word);
            }
        }
        for fact in &facts {
            let prompt: Vec<_> = fact.prompt.split_whitespace().collect();
            assert_eq!(
                next[&prompt],
                HashSet::from([fact.answer]),
                "{}",
                fact.prompt
            );
        }
    }

    #[test]
    fn no_sentence_begins_another() {
        let facts = facts();
        let sentences: Vec<_> = facts.iter().map(sentence).collect();
        let whole: HashSet<_> = sentences.iter().map(Vec::as_slice).collect();
        for words in &sentences {
            assert!(
                (1..words.len()).all(|end| !whole.contains(&words[..end])),
                "{words:?}"
            );
        }
    }

    #[test]
    fn the_vocabulary_is_every_word_once() {
        let vocabulary = vocabulary();
        assert_eq!(
            vocabulary[..6],
            [UNKNOWN, END, "The", "capital", "of", "Spain"]
        );
        let distinct: HashSet<_> = vocabulary.iter().map(String::as_str).collect();
        assert_eq!(distinct.len(), vocabulary.len());
        let facts = facts();
        let used: HashSet<_> = facts
            .iter()
            .flat_map(sentence)
            .chain([UNKNOWN, END])
            .collect();
        assert_eq!(used, distinct);
    }
}
